"""`dglpipe evaluate run=RUN_DIR`: test accuracy of the exits of a finished run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dglpipe.errors import UserError

ALLOWED = "run=RUN_DIR [trust=NAMES]"


def evaluate(arguments: Sequence[str]) -> int:
    """Prints the test results of every exit and writes them to `evaluation.json`."""
    given = dict(word.partition("=")[::2] for word in arguments)
    right = {"run"} <= given.keys() <= {"run", "trust"} and given["run"]
    if not right or len(given) != len(arguments):
        raise UserError(f"evaluate: got {' '.join(arguments)!r}; allowed: {ALLOWED}")
    from dglpipe.runtime.evaluate import evaluate_run

    result = evaluate_run(Path(given["run"]), given.get("trust", ""))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0
