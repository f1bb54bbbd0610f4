"""Range checks of the schema; each raises a ConfigError that names the key."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence

from dglpipe.errors import ConfigError


def require(holds: bool, key: str, got: object, allowed: str, hint: str = "") -> None:
    """Raises ConfigError unless `holds`.

    Args:
        holds: whether the value is allowed.
        key: the configuration key, `pipeline.stages` for example.
        got: the value given.
        allowed: the allowed values, in words.
        hint: how to fix the value, where `allowed` does not say it.
    """
    if not holds:
        raise ConfigError(key, got, allowed, hint)


def require_number(key: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises ConfigError unless `value` is finite and in [`low`, `high`]."""
    kind = "a whole number" if isinstance(value, int) else "a number"
    allowed = f"{kind} from {low}" + ("" if high == math.inf else f" to {high}")
    require(math.isfinite(value) and low <= value <= high, key, value, allowed)


def require_positive(key: str, value: float) -> None:
    """Raises ConfigError unless `value` is finite and above 0."""
    require(math.isfinite(value) and value > 0, key, value, "a number above 0")


def require_name(key: str, value: str, names: Sequence[str]) -> None:
    """Raises ConfigError unless `value` is one of `names`."""
    require(value in names, key, value, ", ".join(names))


def whole(value: object) -> int | None:
    """`value` as an `int` if it is an integer of any library; None otherwise, and for booleans."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


_UNITS: dict[str, int] = {
    unit: base**power
    for base, suffix in ((1000, "B"), (1024, "iB"))
    for power, unit in enumerate((f"K{suffix}", f"M{suffix}", f"G{suffix}", f"T{suffix}"), 1)
} | {"B": 1, "": 1}


def byte_count(key: str, value: object) -> int:
    """Converts a size to bytes.

    Args:
        key: the configuration key that errors name.
        value: a number of bytes, or a string with a unit: `800MB`, `1.5GiB`.

    Raises:
        ConfigError: `value` is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?i?B|)", str(value))
    known = match is not None and match[2] in _UNITS and not isinstance(value, bool)
    require(known, key, value, "a number of bytes, or a number with a unit: 800MB, 1.5GiB")
    assert match is not None
    return int(float(match[1]) * _UNITS[match[2]])
