"""A Gantt chart of a few training steps, from the spans of all stages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from dglpipe.monitoring.timers import Span

SHOWN_STEPS = 6
COLOURS = {
    "receive": "#d9d9d9",
    "load": "#bfbfbf",
    "wait": "#d9d9d9",
    "forward": "#4c78a8",
    "head": "#72b7b2",
    "backward": "#f58518",
    "weights": "#eeca3b",
    "step": "#54a24b",
    "send": "#e45756",
    "evaluation": "#b279a2",
    "log": "#ff9da6",
    "other": "#9d755d",
}
"""Colour of a bar by the name of the span."""


def draw_timeline(spans: Sequence[Span], picture: Path) -> None:
    """Draws some steps from the middle of training, with one row per stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    chosen = _middle(spans)
    stages = sorted({span.stage for span in chosen})
    figure = Figure(figsize=(11, 1.4 + 0.6 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # One call per row and colour: a fast stage has thousands of spans.
    for (stage, what), bars in _bars(chosen).items():
        place = stages.index(stage) - 0.4, 0.8
        axes.broken_barh(bars, place, facecolors=COLOURS.get(what, COLOURS["forward"]))
    axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    present = {span.what for span in chosen}
    keys = [Patch(color=colour, label=what) for what, colour in COLOURS.items() if what in present]
    if keys:
        axes.legend(handles=keys, ncols=len(keys), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(picture, dpi=110)


def _bars(spans: Sequence[Span]) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """(start, length) in milliseconds since the first span, by stage and name."""
    first = min((span.start for span in spans), default=0)
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for span in spans:
        times = (span.start - first) / 1e6, span.duration / 1e6
        bars.setdefault((span.stage, span.what), []).append(times)
    return bars


def _middle(spans: Sequence[Span]) -> list[Span]:
    """The spans of `SHOWN_STEPS` steps in the middle of the steps that all stages have.

    Spans are clipped to the time of these steps. A stage may reach a step long after another
    stage, so the time is limited to twice the time that the slowest stage takes for this number
    of steps.
    """
    if not spans:
        return []
    starts = _step_starts(spans)
    common = sorted(set.intersection(*map(set, starts.values()))) if starts else []
    at = max(0, len(common) // 2 - SHOWN_STEPS // 2)
    chosen = set(common[at : at + SHOWN_STEPS])
    times = [span.start for span in spans if span.step in chosen]
    first = min(times) if times else _shared_moment(spans)
    last = max(span.start + span.duration for span in spans if span.step in chosen or not times)
    step = max((_step_time(sorted(one.values())) for one in starts.values()), default=0)
    if step:
        last = min(last, first + 2 * SHOWN_STEPS * step)
    return [_clip(span, first, last) for span in spans if _overlaps(span, first, last)]


def _step_starts(spans: Sequence[Span]) -> dict[int, dict[int, int]]:
    """Start of each step by stage and step."""
    starts: dict[int, dict[int, int]] = {}
    for span in spans:
        if span.step and span.what in ("forward", "backward"):
            starts.setdefault(span.stage, {}).setdefault(span.step, span.start)
    return starts


def _step_time(starts: Sequence[int]) -> int:
    """The median time between two steps; 0 for a single step."""
    gaps = sorted(later - before for before, later in itertools.pairwise(starts))
    return gaps[len(gaps) // 2] if gaps else 0


def _shared_moment(spans: Sequence[Span]) -> int:
    """The median start in the time that the spans of all stages cover, or of all spans."""
    by_stage: dict[int, list[int]] = {}
    for span in spans:
        by_stage.setdefault(span.stage, []).append(span.start)
    first, last = max(map(min, by_stage.values())), min(map(max, by_stage.values()))
    starts = sorted(span.start for span in spans)
    inside = [start for start in starts if first <= start <= last] or starts
    return inside[len(inside) // 2]


def _overlaps(span: Span, first: int, last: int) -> bool:
    begins = first <= span.start <= last
    return begins or span.start < first < span.start + span.duration


def _clip(span: Span, first: int, last: int) -> Span:
    start, end = max(span.start, first), min(span.start + span.duration, last)
    return span._replace(start=start, duration=end - start)
