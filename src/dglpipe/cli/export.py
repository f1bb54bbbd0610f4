"""`dglpipe export run=RUN_DIR output=FILE.safetensors [exits=true]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dglpipe.errors import UserError
from dglpipe.runtime.inference import export_run

ALLOWED = "run=RUN_DIR output=FILE.safetensors [exits=true]"


def export(arguments: Sequence[str]) -> int:
    """Writes the trained network under its own `state_dict` keys."""
    given = dict(word.partition("=")[::2] for word in arguments)
    right = {"run", "output"} <= given.keys() <= {"run", "output", "exits"}
    if not right or len(given) != len(arguments) or given.get("exits", "true") not in _WORDS:
        raise UserError(f"export: got {' '.join(arguments)!r}; allowed: {ALLOWED}")
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise UserError(f"output: got {output}; allowed: a file name that ends in .safetensors")
    count = export_run(Path(given["run"]), output, _WORDS[given.get("exits", "false")])
    sys.stdout.write(f"{count} tensors in {output}\n")
    return 0


_WORDS = {"true": True, "false": False}
