"""`dglpipe models`: the choices of every configuration group."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dglpipe.cli.config_groups import choices
from dglpipe.errors import UserError

GROUPS = ("head", "local", "data", "optimizer", "schedule", "method", "precision", "experiment")


def models(arguments: Sequence[str]) -> int:
    """Prints one line per network, and the names of the choices of the other groups."""
    if arguments:
        raise UserError(f"models: got {' '.join(arguments)!r}; allowed: no arguments")
    from dglpipe.models import catalogue

    lines = ["model"]
    lines += [f"  {name:16} {text}" for name, text in catalogue()]
    for group in GROUPS:
        lines += [group, f"  {', '.join(choices(group))}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
