"""The picture of convergence: gradient norm and drift of every stage over the steps."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from dglpipe.files import writing
from dglpipe.monitoring.metrics import PROBE

PARTS = (
    ("gradient_norm", "gradient norm of the local loss"),
    ("drift", "drift of the input law since the last measurement"),
)


def draw_convergence(metrics: Path, picture: Path) -> None:
    """Draws the lines of convergence in `metrics.jsonl`; nothing without such lines.

    The drift of stage 0 is 0: its input is the data set.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_stage: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for text in metrics.read_text().splitlines():
        line = json.loads(text)
        if line["kind"] == PROBE:
            by_stage[line["stage"]].append(line)
    if not by_stage:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(1, len(PARTS)), PARTS, strict=True):
        for stage, lines in sorted(by_stage.items()):
            points = [(one["step"], one[name]) for one in lines if one[name]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=f"stage {stage}")
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(label, fontsize=10)
        if axes.lines:
            axes.legend(fontsize=8)
    with writing(picture):
        figure.savefig(picture, dpi=110)
