"""What every process did when: `timeline.json`, in the trace format of Chrome, and a picture.

Each process notes spans of time; at the end of the run they are put together. The timer is that
of the machine since the epoch, so processes of one machine agree to a microsecond, and those of
several as well as their machines do. Format: "Trace Event Format", Google; it opens in Perfetto
(ui.perfetto.dev), with a row for each stage below its process.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from dglpipe.monitoring.timers import Kind, Span, Timer

CAPACITY = 200_000
"""Spans that a process keeps: the last ones of a long run."""
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
"""Of the picture, by what was done."""
NAMES = {
    Kind.BUSY: "compute",
    Kind.WAIT_INPUT: "receive",
    Kind.WAIT_OUTPUT: "wait",
    Kind.LOADING: "load",
    Kind.LOGGING: "log",
    Kind.OTHER: "other",
    Kind.EVALUATING: "evaluation",
}


class TracingTimer(Timer):
    """A timer that keeps what it measured, span by span."""

    is_tracing = True

    def __init__(self) -> None:
        super().__init__()
        self._spans: deque[tuple[int, str, int, int, int]] = deque(maxlen=CAPACITY)
        self._step = 0
        self._epoch = time.time_ns() - perf_counter_ns()

    def steps_to(self, step: int) -> None:
        self._step = step

    def book(self, now: int, stage: int, kind: Kind, what: str | None) -> None:
        start = self._last
        super().book(now, stage, kind, what)
        self._spans.append((stage, what or NAMES[kind], start, self._last - start, self._step))

    def spans(self) -> list[Span]:
        return [
            Span(stage, what, start + self._epoch, duration, step)
            for stage, what, start, duration, step in self._spans
        ]


def write_part(path: Path, rank: int, name: str, spans: Iterable[Span]) -> None:
    """Leaves the spans of one process for `merge`."""
    tree = {"rank": rank, "name": name, "spans": list(spans)}
    path.write_text(json.dumps(tree))


def merge(parts: Sequence[Path], trace: Path, picture: Path) -> None:
    """Puts the spans of all processes together, as a trace and as a picture.

    Args:
        parts: what `write_part` left; they are deleted.
    """
    processes = [json.loads(part.read_text()) for part in parts]
    trace.write_text(json.dumps({"traceEvents": _events(processes), "displayTimeUnit": "ms"}))
    spans = [Span(*span) for process in processes for span in process["spans"]]
    draw_timeline(spans, picture)
    for part in parts:
        part.unlink()


def _events(processes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trace events; times in microseconds since the first span."""
    first = min((span[2] for one in processes for span in one["spans"]), default=0)
    events: list[dict[str, Any]] = []
    for process in processes:
        rank = process["rank"]
        events.append(_title("process_name", rank, 0, process["name"]))
        for stage in sorted({span[0] for span in process["spans"]}):
            events.append(_title("thread_name", rank, stage, f"stage {stage}"))
        for stage, what, start, duration, step in process["spans"]:
            place = {"pid": rank, "tid": stage, "args": {"step": step}}
            times = {"ts": (start - first) / 1e3, "dur": duration / 1e3}
            events.append({"name": what, "cat": what, "ph": "X", **times, **place})
    return events


def _title(what: str, rank: int, stage: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": stage, "args": {"name": name}}


def draw_timeline(spans: Sequence[Span], picture: Path) -> None:
    """A Gantt chart of some steps in the middle of training, a row a stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    chosen = _middle(spans)
    stages = sorted({span.stage for span in chosen})
    figure = Figure(figsize=(11, 1.4 + 0.6 * len(stages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    first = min((span.start for span in chosen), default=0)
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for span in chosen:
        times = (span.start - first) / 1e6, span.duration / 1e6
        bars.setdefault((span.stage, span.what), []).append(times)
    # One call a colour and row: a quick stage has thousands of spans beside a slow one.
    for (stage, what), ranges in bars.items():
        place = stages.index(stage) - 0.4, 0.8
        axes.broken_barh(ranges, place, facecolors=COLOURS.get(what, COLOURS["forward"]))
    axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    present = {span.what for span in chosen}
    keys = [Patch(color=colour, label=what) for what, colour in COLOURS.items() if what in present]
    if keys:
        axes.legend(handles=keys, ncols=len(keys), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(picture, dpi=110)


def _middle(spans: Sequence[Span]) -> list[Span]:
    """What was done in the time of some steps, from the middle of those that all stages have.

    A stage may come to a step long after another one: the time is not longer than twice what
    the slowest stage takes for so many steps. Spans are cut to it.
    """
    if not spans:
        return []
    starts: dict[int, dict[int, int]] = {}
    for span in spans:
        if span.step and span.what in ("forward", "backward"):
            starts.setdefault(span.stage, {}).setdefault(span.step, span.start)
    common = sorted(set.intersection(*map(set, starts.values()))) if starts else []
    at = max(0, len(common) // 2 - SHOWN_STEPS // 2)
    chosen = set(common[at : at + SHOWN_STEPS])
    times = [span.start for span in spans if span.step in chosen]
    first = min(times) if times else _shared_moment(spans)
    last = max(span.start + span.duration for span in spans if span.step in chosen or not times)
    step = max((_pace(sorted(one.values())) for one in starts.values()), default=0)
    if step:
        last = min(last, first + 2 * SHOWN_STEPS * step)
    return [_cut(span, first, last) for span in spans if _overlaps(span, first, last)]


def _pace(starts: Sequence[int]) -> int:
    """The median time from one step to the next; 0 if there is no next."""
    gaps = sorted(later - before for before, later in itertools.pairwise(starts))
    return gaps[len(gaps) // 2] if gaps else 0


def _shared_moment(spans: Sequence[Span]) -> int:
    """The middle of the time of which all stages have kept something, or of all starts."""
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


def _cut(span: Span, first: int, last: int) -> Span:
    start, end = max(span.start, first), min(span.start + span.duration, last)
    return span._replace(start=start, duration=end - start)
