"""`dglpipe export run=RUN_DIR output=FILE.safetensors`: the trained network as one file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dglpipe.errors import UserError

ALLOWED = "run=RUN_DIR output=FILE.safetensors [exits=true] [trust=NAMES]"
BOOLEANS = {"true": True, "false": False}


def export(arguments: Sequence[str]) -> int:
    """Writes the trained network under its own `state_dict` keys."""
    given = dict(word.partition("=")[::2] for word in arguments)
    right = {"run", "output"} <= given.keys() <= {"run", "output", "exits", "trust"}
    if not right or len(given) != len(arguments) or given.get("exits", "true") not in BOOLEANS:
        raise UserError(f"export: got {' '.join(arguments)!r}; allowed: {ALLOWED}")
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise UserError(f"output: got {output}; allowed: a file name that ends in .safetensors")
    from dglpipe.runtime.inference import export_run

    exits, trust = BOOLEANS[given.get("exits", "false")], given.get("trust", "")
    count = export_run(Path(given["run"]), output, exits, trust)
    sys.stdout.write(f"wrote {count} tensors to {output}\n")
    return 0
