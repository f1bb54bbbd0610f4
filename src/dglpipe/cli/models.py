"""`dglpipe models`: what can be chosen by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files

from dglpipe.errors import UserError
from dglpipe.models import catalogue

GROUPS = ("head", "data", "optimizer", "schedule", "method", "precision", "experiment")


def models(arguments: Sequence[str]) -> int:
    """Prints networks with a line each, and the names of the other groups."""
    if arguments:
        raise UserError(f"models: got {' '.join(arguments)!r}; it takes no arguments")
    lines = ["model"]
    lines += [f"  {name:16} {text}" for name, text in catalogue()]
    for group in GROUPS:
        lines += [group, f"  {', '.join(_choices(group))}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _choices(group: str) -> list[str]:
    folder = files("dglpipe.conf").joinpath(group)
    if not folder.is_dir():
        return []
    names = [item.name for item in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
