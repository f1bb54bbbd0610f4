"""What an operation is called."""

from __future__ import annotations

from torch import fx


def name_of(node: fx.Node) -> str:
    """Function or method of an operation, or the path of its module."""
    name: str = getattr(node.target, "__name__", str(node.target))
    return name
