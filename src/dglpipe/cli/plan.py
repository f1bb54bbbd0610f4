"""`dglpipe plan`: the cut, and what its stages take, without training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dglpipe.cli.compose import compose, take_apart
from dglpipe.cli.plan_table import plan_table
from dglpipe.errors import UserError
from dglpipe.runtime.plan import plan_run


def plan(arguments: Sequence[str]) -> int:
    """Prints a line a stage and writes them to `output` if that is given."""
    output = [word.partition("=")[2] for word in arguments if word.startswith("output=")]
    parts = take_apart([word for word in arguments if not word.startswith("output=")])
    if parts.sweep or parts.flags or parts.run_dir or len(output) > 1:
        raise UserError(f"plan: got {' '.join(arguments)!r}; allowed: OVERRIDES [output=FILE.json]")
    path = Path(output[0]) if output else None
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"output: got {path}; allowed: a file in a folder that there is")
    found = plan_run(compose(parts))
    plan_table(found)
    if path is not None:
        _write(
            path,
            {
                "rows": found.rows,
                "predicted_speed_up": found.speed_up,
                "predicted_samples_per_second": found.samples_per_second,
                "bottleneck": found.bottleneck,
                "loading_seconds_per_batch": found.loader.seconds_per_step,
                "loader": {"stage": "loader", **dataclasses.asdict(found.loader)},
                "per_stage": [
                    {**dataclasses.asdict(stage), "memory_bytes": stage.memory_bytes}
                    for stage in found.stages
                ],
            },
        )
    return 0


def _write(path: Path, tree: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(tree, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output: got {path}; it cannot be written: {error.strerror}") from error
