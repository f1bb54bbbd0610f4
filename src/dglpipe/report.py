"""The tables of a run: what it will take, and what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dglpipe.estimate import Plan

PERCENT = ".2%"
SLOW_LOADING = 0.1
"""Share of the time of stage 0 from which on loading is spoken of."""


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
    loading = summary["per_stage"][0]["loading_fraction"]
    if loading is not None and loading > SLOW_LOADING:
        text = (
            f"loading images took {_show(loading, '.0%')} of the time of stage 0, which feeds all:"
        )
        hint = "raise data.workers, or hold smaller images in memory (data.image_size)"
        console.print(f"{text} {hint}", soft_wrap=True)
    console.print(f"results in {path}", soft_wrap=True, highlight=False)


def plan_table(plan: Plan) -> None:
    """Prints what each stage will take, and the speed that the cut promises."""
    stages, rows = plan.stages, plan.rows
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title=f"plan: {len(stages)} stages", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    timed = stages[0].seconds_per_step is not None
    columns = ["stage", "segments", "parameters", "of head", "GFLOPs\na sample", "share\nof head"]
    columns += ["ms\na step"] * timed
    columns += ["output\na row", "KiB a row\non link", "weights\nMiB", "optimizer\nMiB"]
    for column in (*columns, f"activations\nat {rows} rows", "of it\nin buffers"):
        # The names of segments give way: a column that may be folded is made narrow first.
        table.add_column(column, justify="right", no_wrap=column != "segments", overflow="fold")
    for stage in stages:
        names = stage.segments
        shape = stage.output_shape
        table.add_row(
            str(stage.stage),
            f"{names[0]} .. {names[-1]}" if len(names) > 1 else names[0],
            f"{stage.parameters:,}",
            f"{stage.head_parameters:,}",
            f"{stage.flops_per_sample / 1e9:.3f}",
            _show(stage.head_flops_per_sample / max(stage.flops_per_sample, 1), ".1%"),
            *([_show((stage.seconds_per_step or 0) * 1e3, ".2f")] * timed),
            "x".join(map(str, shape)) if shape else "-",
            f"{stage.link_bytes_per_sample / 1024:.1f}" if shape else "-",
            f"{stage.weight_bytes / 2**20:.1f}",
            f"{stage.optimizer_bytes / 2**20:.1f}",
            f"{stage.activation_bytes / 2**20:.1f}",
            f"{stage.buffer_bytes / 2**20:.1f}",
        )
    console.print(table)
    by = "measured time" if timed else "FLOPs"
    console.print(f"predicted speed-up over one process, by {by}: {plan.speed_up:.2f}")
    if plan.loading_seconds is not None:
        rate = plan.rows / plan.loading_seconds
        console.print(f"loader: {plan.loading_seconds * 1e3:.2f} ms a batch, {rate:.1f} samples/s")
    if plan.samples_per_second is not None:
        console.print(f"predicted samples/s: {plan.samples_per_second:.1f}")
