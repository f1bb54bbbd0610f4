"""The picture of README.md: what two processes do over time, with DGL and with a pipeline.

    python benchmarks/timelines/timelines.py --output docs/timelines.png

Trains twice with `timeline=true` and draws the same length of time from the middle of both runs, a
row for each process.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common import train
from dglpipe.monitoring.trace_plot import COLOURS

COMMON = (
    *("model.width=64", "data=synthetic", "data.samples=5120", "batch_size=128", "max_steps=30"),
    *("pipeline.threads=1", "timeline=true", "log_every=1000", "evaluate.every=0"),
)
RUNS = {
    "DGL: two stages": ("pipeline.stages=2",),
    "Backprop: interleaved 1F1B, four stages, four micro-batches": (
        *("method=backprop", "method.schedule=interleaved_1f1b", "method.microbatches=4"),
        *("pipeline.stages=4", "pipeline.processes=2"),
    ),
}
SHOWN = ("forward", "head", "backward", "step", "send", "receive", "wait")
SHOWN_STEPS = 3
"""Steps of DGL that fit into the picture."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the picture, a PNG file")
    output = parser.parse_args().output
    traces = {title: trace(words) for title, words in RUNS.items()}
    length = SHOWN_STEPS * step_time(traces["DGL: two stages"])
    draw(traces, length, output)


def trace(words: tuple[str, ...]) -> list[dict[str, Any]]:
    """The spans of the training steps of a run."""
    return [span for span in train([*COMMON, *words]).spans if span["args"]["step"]]


def starts(events: list[dict[str, Any]]) -> list[float]:
    """Start of each step in the last process, in microseconds."""
    last = max(event["pid"] for event in events)
    first: dict[int, float] = {}
    for event in events:
        if event["pid"] == last and event["name"] == "forward":
            first.setdefault(event["args"]["step"], event["ts"])
    return [first[step] for step in sorted(first)]


def step_time(events: list[dict[str, Any]]) -> float:
    """Median time of a step, in microseconds."""
    times = starts(events)
    return median(later - before for before, later in itertools.pairwise(times))


def draw(traces: dict[str, list[dict[str, Any]]], length: float, output: Path) -> None:
    """Draws `length` microseconds from the middle of each run."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(traces), 1, sharex=True)
    for axes, (title, events) in zip(panels, traces.items(), strict=True):
        middle = starts(events)
        begin = middle[len(middle) // 2]
        for event in events:
            draw_event(axes, event, begin, length)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_yticks([0, 1], ["process 0", "process 1"])
        axes.set_xlim(0, length / 1e3)
        axes.invert_yaxis()
    panels[-1].set_xlabel("ms")
    keys = [Patch(color=COLOURS[name], label=name) for name in SHOWN]
    figure.legend(handles=keys, ncols=len(keys), loc="outside lower center", fontsize=9)
    figure.savefig(output, dpi=110)


def draw_event(axes: Any, event: dict[str, Any], begin: float, length: float) -> None:
    """Draws one span, clipped to the shown time."""
    start = max(event["ts"], begin)
    end = min(event["ts"] + event["dur"], begin + length)
    if end > start and event["name"] in SHOWN:
        bar = (start - begin) / 1e3, (end - start) / 1e3
        axes.broken_barh([bar], (event["pid"] - 0.4, 0.8), facecolors=COLOURS[event["name"]])


if __name__ == "__main__":
    main()
