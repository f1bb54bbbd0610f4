"""The table that closes a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PERCENT = ".2%"


def _show(value: float | None, form: str = PERCENT) -> str:
    return "-" if value is None else format(value, form)


def closing_table(summary: Mapping[str, Any], path: Path) -> None:
    """Prints accuracy exit by exit, the ensemble, speed and waiting, and where it all is."""
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
            _show(accuracy),
            _show(stage["busy_fraction"], ".1%"),
            _show(stage["wait_input_fraction"], ".1%"),
            _show(stage["wait_output_fraction"], ".1%"),
        )
    console.print(table)
    rate = summary["throughput"]["samples_per_second"]
    ensemble = summary["test"]["ensemble_accuracy"]
    console.print(f"ensemble {_show(ensemble)}   samples/s {_show(rate, '.0f')}")
    console.print(f"results in {path}", soft_wrap=True, highlight=False)
