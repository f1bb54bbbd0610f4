"""Range checks of the schema."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dglpipe.errors import ConfigError


def require(holds: bool, key: str, got: object, allowed: str, hint: str = "") -> None:
    if not holds:
        raise ConfigError(key, got, allowed, hint)


def require_number(key: str, value: float, low: float, high: float = math.inf) -> None:
    kind = "a whole number" if isinstance(value, int) else "a number"
    allowed = f"{kind} from {low}" + ("" if high == math.inf else f" to {high}")
    require(math.isfinite(value) and low <= value <= high, key, value, allowed)


def require_positive(key: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, key, value, "a number above 0")


def require_name(key: str, value: str, names: Sequence[str]) -> None:
    require(value in names, key, value, ", ".join(names))
