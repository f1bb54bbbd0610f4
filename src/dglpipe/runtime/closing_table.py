"""The tables of a run: what it will take, and what it gave."""

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
"""Shares of the time of the first process: loading is spoken of if it takes more than the one, and
waiting for the next process less than the other."""


def closing_table(summary: Mapping[str, Any], path: Path, decoders: int | None = None) -> None:
    """Prints accuracy exit by exit, the ensemble, speed and waiting, and where it all is.

    Args:
        decoders: processes that decode images; None where they are held in memory.
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
    """What holds up the chain, and what helps; empty where loading does not."""
    loading = stages[0]["loading_fraction"]
    own = [stage for stage in stages if stage["process"] == stages[0]["process"]]
    if loading is None or loading <= SLOW_LOADING:
        return ""
    # A process books the wait for the next one to the last of its stages.
    if sum(stage["wait_output_fraction"] or 0.0 for stage in own) >= HELD_UP:
        return ""
    remedy = ", by its process"
    if decoders is None and len(own[0]["segments"]) > 1 and len(stages) > 1:
        remedy = ", by its process: give stage 0 fewer segments (pipeline.split)"
    elif decoders is not None and decoders < cores():
        remedy = f": raise data.workers ({decoders} now)"
    elif decoders is not None:
        remedy = f": its {decoders} processes (data.workers) have all cores of this machine"
    took = f"{format_value(loading, '.0%')} of the time of stage 0, which feeds all"
    return f"loading images took {took}{remedy}"
