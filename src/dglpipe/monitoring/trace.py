"""Traces: `timeline.json` in the Chrome trace format, from the spans of all processes.

Each process records spans of time and writes them to a file at the end of the run; `merge`
combines the files. Times come from the system clock, so the processes of one machine agree to a
microsecond; between machines the accuracy is the accuracy of their clocks. Perfetto
(ui.perfetto.dev) shows the trace with one row per stage below each process.

Format: "Trace Event Format", Google.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from dglpipe.files import write_whole, writing
from dglpipe.monitoring.timers import Kind, Span, Timer
from dglpipe.monitoring.trace_plot import draw_timeline

CAPACITY = 200_000
"""Number of spans that a process keeps; a long run keeps the last spans."""
SPAN_NAMES = {
    Kind.BUSY: "compute",
    Kind.WAIT_INPUT: "receive",
    Kind.WAIT_OUTPUT: "wait",
    Kind.LOADING: "load",
    Kind.LOGGING: "log",
    Kind.OTHER: "other",
    Kind.EVALUATING: "evaluation",
}
"""Name of a span without a name of its own."""


class TracingTimer(Timer):
    """A timer that also records each lap as a span."""

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
        self._spans.append((stage, what or SPAN_NAMES[kind], start, now - start, self._step))

    def spans(self) -> list[Span]:
        return [
            Span(stage, what, start + self._epoch, duration, step)
            for stage, what, start, duration, step in self._spans
        ]


def write_part(path: Path, rank: int, name: str, spans: Iterable[Span]) -> None:
    """Writes the spans of one process to `path`, for `merge`."""
    write_whole(path, json.dumps({"rank": rank, "name": name, "spans": list(spans)}))


def merge(parts: Sequence[Path], trace: Path, picture: Path) -> None:
    """Combines the spans of all processes to a trace and a picture.

    Args:
        parts: files from `write_part`; `merge` deletes them.
        trace: output file in the Chrome trace format.
        picture: output file of `draw_timeline`.
    """
    processes = [json.loads(part.read_text()) for part in parts]
    write_whole(trace, json.dumps({"traceEvents": _events(processes), "displayTimeUnit": "ms"}))
    spans = [Span(*span) for process in processes for span in process["spans"]]
    with writing(picture):
        draw_timeline(spans, picture)
    for part in parts:
        part.unlink()


def _events(processes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trace events; times are in microseconds since the first span."""
    first = min((span[2] for one in processes for span in one["spans"]), default=0)
    events: list[dict[str, Any]] = []
    for process in processes:
        rank = process["rank"]
        events.append(_metadata("process_name", rank, 0, process["name"]))
        for stage in sorted({span[0] for span in process["spans"]}):
            events.append(_metadata("thread_name", rank, stage, f"stage {stage}"))
        for stage, what, start, duration, step in process["spans"]:
            place = {"pid": rank, "tid": stage, "args": {"step": step}}
            times = {"ts": (start - first) / 1e3, "dur": duration / 1e3}
            events.append({"name": what, "cat": what, "ph": "X", **times, **place})
    return events


def _metadata(what: str, rank: int, stage: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": rank, "tid": stage, "args": {"name": name}}
