"""`dglpipe plan`: prints the stages of a run and their costs without training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.errors import UserError

if TYPE_CHECKING:
    from dglpipe.partition.throughput_model import Plan


def plan(arguments: Sequence[str]) -> int:
    """Prints one row per stage; with `output=FILE.json`, also writes the rows to the file."""
    outputs = [word.partition("=")[2] for word in arguments if word.startswith("output=")]
    parsed = parse_arguments([word for word in arguments if not word.startswith("output=")])
    if parsed.sweep or parsed.flags or parsed.run_dir or len(outputs) > 1:
        raise UserError(f"plan: got {' '.join(arguments)!r}; allowed: OVERRIDES [output=FILE.json]")
    path = Path(outputs[0]) if outputs else None
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"output: got {path}; allowed: a file in an existing directory")
    config = compose(parsed)
    # These imports load torch, so they come after the checks.
    from dglpipe.cli.plan_table import print_plan
    from dglpipe.runtime.plan import plan_run

    found = plan_run(config)
    print_plan(found)
    if path is not None:
        try:
            path.write_text(json.dumps(_to_tree(found), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"output: got {path}; cannot write: {error.strerror}") from error
    return 0


def _to_tree(plan: Plan) -> dict[str, Any]:
    """The content of the output file."""
    return {
        "rows": plan.rows,
        "predicted_speed_up": plan.speed_up,
        "predicted_samples_per_second": plan.samples_per_second,
        "bottleneck": plan.bottleneck,
        "loading_seconds_per_batch": plan.loader.seconds_per_step,
        "loader": {"stage": "loader", **dataclasses.asdict(plan.loader)},
        "per_stage": [
            {**dataclasses.asdict(stage), "memory_bytes": stage.memory_bytes}
            for stage in plan.stages
        ],
    }
