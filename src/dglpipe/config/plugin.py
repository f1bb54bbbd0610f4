"""The configuration of a plug-in: a network, head, loss or data set from outside the package."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class PluginConfig:
    """A network, head, loss or data set from outside the package."""

    family: str = "custom"
    """Always `custom`."""
    name: str = "custom"
    """Always `custom`."""
    target: str = ""
    """Import path of the builder: `package.module:builder` or `package.module.builder`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the builder; {}: none."""
