"""`dglpipe evaluate run=RUN_DIR`: test accuracy of the exits of a finished run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dglpipe.errors import UserError


def evaluate(arguments: Sequence[str]) -> int:
    """Prints the test results of every exit and writes them to `evaluation.json`."""
    paths = [word[len("run=") :] for word in arguments if word.startswith("run=")]
    if len(arguments) != 1 or not paths or not paths[0]:
        raise UserError(f"evaluate: got {' '.join(arguments)!r}; allowed: run=RUN_DIR")
    from dglpipe.runtime.evaluate import evaluate_run

    result = evaluate_run(Path(paths[0]))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0
