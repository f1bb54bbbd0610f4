"""Range checks of the schema."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence

from dglpipe.errors import ConfigError


def require(holds: bool, key: str, got: object, allowed: str, hint: str = "") -> None:
    if not holds:
        raise ConfigError(key, got, allowed, hint)


def require_number(key: str, value: float, low: float, high: float = math.inf) -> None:
    kind = "a whole number" if isinstance(value, int) else "a number"
    allowed = f"{kind} from {low}" + ("" if high == math.inf else f" to {high}")
    require(math.isfinite(value) and low <= value <= high, key, value, allowed)


def whole(value: object) -> int | None:
    """`value` if it is a whole number of any library, as an `int`; truth values are none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def require_positive(key: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, key, value, "a number above 0")


def require_name(key: str, value: str, names: Sequence[str]) -> None:
    require(value in names, key, value, ", ".join(names))


_UNITS: dict[str, int] = {
    unit: base**power
    for base, suffix in ((1000, "B"), (1024, "iB"))
    for power, unit in enumerate((f"K{suffix}", f"M{suffix}", f"G{suffix}", f"T{suffix}"), 1)
} | {"B": 1, "": 1}


def byte_count(key: str, value: object) -> int:
    """Bytes of a whole number, or of a text such as 1.5GiB or 800MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?i?B|)", str(value))
    known = match is not None and match[2] in _UNITS and not isinstance(value, bool)
    require(known, key, value, "a number of bytes, or one with its unit: 800MB, 1.5GiB")
    assert match is not None
    return int(float(match[1]) * int(_UNITS[match[2]]))
