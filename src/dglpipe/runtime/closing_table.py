"""The table that a finished run prints: accuracy, busy and waiting time by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dglpipe.host import cores
from dglpipe.monitoring.metrics import format_value

SLOW_LOADING, HELD_UP = 0.1, 0.05
"""Fractions of the time of the first process. The table has a line on loading if loading takes more
than `SLOW_LOADING` and waiting for the next process takes less than `HELD_UP`."""


def closing_table(summary: Mapping[str, Any], path: Path, decoders: int | None = None) -> None:
    """Prints the results of every stage, ensemble accuracy, throughput and the run directory.

    Args:
        decoders: number of processes that decode images; None if the images are in memory.
    """
    console = Console(width=None if Console().is_terminal else 100)
    title = f"{summary['method']}: {summary['stages']} stages"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    columns = ("stage", "process", "segments", "parameters", "test\naccuracy", "busy")
    for column in (*columns, "waits\nfor input", "waits\nfor output"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, accuracy in zip(summary["per_stage"], summary["test"]["accuracy"], strict=True):
        table.add_row(
            str(stage["stage"]),
            str(stage["process"]),
            str(len(stage["segments"])),
            f"{stage['parameters']:,}",
            format_value(accuracy),
            format_value(stage["busy_fraction"], ".1%"),
            format_value(stage["wait_input_fraction"], ".1%"),
            format_value(stage["wait_output_fraction"], ".1%"),
        )
    console.print(table)
    rate = summary["throughput"]["samples_per_second"]
    ensemble = summary["test"]["ensemble_accuracy"]
    console.print(f"ensemble {format_value(ensemble)}   samples/s {format_value(rate, '.0f')}")
    text = _on_loading(summary["per_stage"], decoders)
    if text:
        console.print(text, soft_wrap=True)
    console.print(f"results in {path}", soft_wrap=True, highlight=False)


def _on_loading(stages: Sequence[Mapping[str, Any]], decoders: int | None) -> str:
    """A line on slow image loading, with a remedy; empty if loading is not the bottleneck."""
    loading = stages[0]["loading_fraction"]
    own = [stage for stage in stages if stage["process"] == stages[0]["process"]]
    if loading is None or loading <= SLOW_LOADING:
        return ""
    # The time that a process waits for the next process counts for its last stage.
    if sum(stage["wait_output_fraction"] or 0.0 for stage in own) >= HELD_UP:
        return ""
    remedy = ", in its own process"
    if decoders is None and len(own[0]["segments"]) > 1 and len(stages) > 1:
        remedy = ", in its own process: give stage 0 fewer segments (pipeline.split)"
    elif decoders is not None and decoders < cores():
        remedy = f": raise data.workers ({decoders} now)"
    elif decoders is not None:
        remedy = f": {decoders} processes (data.workers) already use all cores of this machine"
    took = f"{format_value(loading, '.0%')} of the time of stage 0, which feeds all stages"
    return f"loading images took {took}{remedy}"
