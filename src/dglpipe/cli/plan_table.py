"""The tables of `dglpipe plan`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dglpipe.monitoring.metrics import format_value
from dglpipe.partition.estimate import StageEstimate
from dglpipe.partition.throughput_model import CORES, LOADER, LoaderEstimate, Plan


def print_plan(plan: Plan) -> None:
    """Prints the costs of every stage and the predicted throughput.

    The columns are divided into two tables, so that each table fits in a terminal. The segments
    of the stages follow in lines without a limit on their length.
    """
    stages = plan.stages
    console = Console(width=None if Console().is_terminal else 120)
    timed = stages[0].seconds_per_step is not None
    console.print(_work_table(stages, plan.loader, timed))
    console.print(_memory_table(stages, plan.rows))
    for stage in stages:
        console.print(_segments_line(stage), soft_wrap=True, highlight=False, markup=False)
    by = "measured time" if timed else "FLOPs"
    console.print(f"predicted speed-up over one process, by {by}: {plan.speed_up:.2f}")
    console.print(f"bottleneck: {_bottleneck(plan)}", soft_wrap=True, highlight=False)
    if plan.samples_per_second is not None:
        console.print(f"predicted samples/s: {plan.samples_per_second:.1f}")


def _bottleneck(plan: Plan) -> str:
    if plan.bottleneck == CORES:
        return "the CPU cores, which all processes of this machine share"
    if plan.bottleneck != LOADER:
        return plan.bottleneck
    if plan.loader.workers:
        return f"the loader, with {plan.loader.workers} processes (data.workers)"
    return "the loader, in the process of stage 0"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _work_table(stages: Sequence[StageEstimate], loader: LoaderEstimate, timed: bool) -> Table:
    """Parameters, FLOPs, time and output shape of the loader and of every stage."""
    columns = ["stage", "parameters", "of head", "GFLOPs\nper sample", "share\nof head"]
    columns += ["ms\nper step"] * timed
    table = _table(f"plan: {len(stages)} stages", [*columns, "output\nper row"])
    seconds = loader.seconds_per_step
    time = [format_value(None if seconds is None else seconds * 1e3, ".2f")] * timed
    table.add_row(LOADER, *["-"] * 4, *time, "x".join(map(str, loader.output_shape)))
    for stage in stages:
        shape = stage.output_shape
        table.add_row(
            str(stage.stage),
            f"{stage.parameters:,}",
            f"{stage.head_parameters:,}",
            f"{stage.flops_per_sample / 1e9:.3f}",
            format_value(stage.head_flops_per_sample / max(stage.flops_per_sample, 1), ".1%"),
            *([format_value((stage.seconds_per_step or 0) * 1e3, ".2f")] * timed),
            "x".join(map(str, shape)) if shape else "-",
        )
    return table


def _memory_table(stages: Sequence[StageEstimate], rows: int) -> Table:
    """Memory of every stage, and the size of its messages."""
    columns = ["stage", "weights\nMiB", "optimizer\nMiB", f"activations\nat {rows} rows"]
    columns += ["of these\nin buffers", "memory\nMiB", "KiB per row\non link"]
    goes_down = any(stage.delay is not None for stage in stages)
    columns += ["KiB per row\ndown", "delay\nin steps"] * goes_down
    table = _table("memory and links", columns)
    for stage in stages:
        activations, buffers = stage.activation_bytes, stage.buffer_bytes
        sizes = (stage.weight_bytes, stage.optimizer_bytes, activations, buffers)
        cells = [f"{size / 2**20:.1f}" for size in (*sizes, stage.memory_bytes)]
        link = f"{stage.link_bytes_per_sample / 1024:.1f}" if stage.output_shape else "-"
        down = f"{stage.down_bytes_per_sample / 1024:.1f}" if stage.down_bytes_per_sample else "-"
        more = [down, "-" if stage.delay is None else str(stage.delay)] * goes_down
        table.add_row(str(stage.stage), *cells, link, *more)
    return table


def _segments_line(stage: StageEstimate) -> str:
    names, count = stage.segments, len(stage.segments)
    span = f"{names[0]} .. {names[-1]}" if count > 1 else names[0]
    return f"stage {stage.stage}: {span} ({count} segment{'s' * (count > 1)})"
