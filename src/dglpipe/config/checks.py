"""Range checks of the schema; each raises a ConfigError that names the key."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence

from dglpipe.errors import ConfigError

LARGEST = 1_000_000_000
"""Upper limit of numbers without a limit of their own."""
SMALLEST = 1e-30
"""Lower limit of numbers above 0: smaller numbers underflow in fp32."""
LONGEST_NAME, LONGEST_PATH = 255, 3000
"""Limits of a path in bytes: each part, and all of it. Linux allows 255 and 4095; the files of a
run are below the path."""
DEEPEST = 30
"""Limit of lists and groups inside each other."""


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


def require_number(key: str, value: float, low: float, high: float = LARGEST) -> None:
    """Raises ConfigError unless `value` is in [`low`, `high`]; NaN never is."""
    kind = "a whole number" if isinstance(value, int) else "a number"
    require(low <= value <= high, key, value, f"{kind} from {low} to {high}")


def require_positive(key: str, value: float, high: float = LARGEST) -> None:
    """Raises ConfigError unless `value` is in [`SMALLEST`, `high`]."""
    allowed = f"a number above 0, {SMALLEST:g} to {high:g}"
    require(SMALLEST <= value <= high, key, value, allowed)


def require_path(key: str, value: str) -> None:
    """Raises ConfigError for a path that no file can have."""
    parts = (len(os.fsencode(part)) for part in value.split("/"))
    fits = max(parts) <= LONGEST_NAME and len(os.fsencode(value)) <= LONGEST_PATH
    allowed = f"a path of at most {LONGEST_NAME} bytes in each part and {LONGEST_PATH} in all"
    require(fits, key, value, allowed)
    unknown = os.path.expanduser(value).startswith("~") and value.startswith("~")  # noqa: PTH111
    require(not unknown, key, value, "a path; ~NAME is the home of a user of this machine")


def require_plain(key: str, value: object, depth: int = 0) -> None:
    """Raises ConfigError unless `value` can be written to a YAML file and read back.

    Args:
        key: configuration key of `value`; "": the top level.
        value: null, boolean, number, text in UTF-8, or a list or group of these.
        depth: lists and groups around `value`.
    """
    require(depth <= DEEPEST, key, "...", f"at most {DEEPEST} lists and groups inside each other")
    if isinstance(value, Mapping):
        for name, item in value.items():
            require(isinstance(name, str), key, name, "names as keys of a group {key: value}")
            require(is_text(name), key, name, "text in UTF-8")
            require_plain(f"{key}.{name}" if key else name, item, depth + 1)
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            require_plain(f"{key}[{at}]", item, depth + 1)
    elif isinstance(value, str):
        require(is_text(value), key, value, "text in UTF-8")
    elif isinstance(value, int):
        require(-(2**63) <= value < 2**63, key, value, "whole numbers of 64 bits")
    else:
        plain = value is None or isinstance(value, float)
        require(plain, key, value, "null, true, false, a number, a text, a list or a group")


def is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8 and used as an argument of a program."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # a byte of the command line that is not UTF-8
        return False


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
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) *([KMGT]?i?B|)", str(value))
    known = match is not None and match[2] in _UNITS and not isinstance(value, bool)
    require(known, key, value, "a number of bytes, or a number with a unit: 800MB, 1.5GiB")
    assert match is not None
    return int(float(match[1]) * _UNITS[match[2]])
