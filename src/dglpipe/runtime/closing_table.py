"""The tables of a run: what it will take, and what it gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dglpipe.data.decode import cores
from dglpipe.partition.estimate import StageEstimate
from dglpipe.partition.throughput_model import CORES, LOADER, LoaderEstimate, Plan

PERCENT = ".2%"
SLOW_LOADING, HELD_UP = 0.1, 0.05
"""Shares of the time of the first process: loading is spoken of if it takes more than the one, and
waiting for the next process less than the other."""


def _show(value: float | None, form: str = PERCENT) -> str:
    return "-" if value is None else format(value, form)


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
            _show(accuracy),
            _show(stage["busy_fraction"], ".1%"),
            _show(stage["wait_input_fraction"], ".1%"),
            _show(stage["wait_output_fraction"], ".1%"),
        )
    console.print(table)
    rate = summary["throughput"]["samples_per_second"]
    ensemble = summary["test"]["ensemble_accuracy"]
    console.print(f"ensemble {_show(ensemble)}   samples/s {_show(rate, '.0f')}")
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
    took = f"{_show(loading, '.0%')} of the time of stage 0, which feeds all"
    return f"loading images took {took}{_help(len(own[0]['segments']), len(stages), decoders)}"


def _help(segments: int, stages: int, decoders: int | None) -> str:
    """What there is to do about loading, in this run."""
    if decoders is not None:
        if decoders < cores():
            return f": raise data.workers ({decoders} now)"
        return f": its {decoders} processes (data.workers) have all cores of this machine"
    if segments > 1 and stages > 1:
        return ", by its process: give stage 0 fewer segments (pipeline.split)"
    return ", by its process"


def plan_table(plan: Plan) -> None:
    """Prints what each stage will take, and the speed that the cut promises.

    Two tables, for no terminal is as wide as all the columns; below them what each stage has
    of the network, in lines that may be of any length.
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
        return "the cores of this machine: its processes share them"
    if plan.bottleneck != LOADER:
        return plan.bottleneck
    if plan.loader.workers:
        return f"the loader, in {plan.loader.workers} processes (data.workers)"
    return "the loader, in the process of stage 0"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _work_table(stages: Sequence[StageEstimate], loader: LoaderEstimate, timed: bool) -> Table:
    """Weights, arithmetic, and what comes out: of the loader, in front, and of the stages."""
    columns = ["stage", "parameters", "of head", "GFLOPs\na sample", "share\nof head"]
    columns += ["ms\na step"] * timed
    table = _table(f"plan: {len(stages)} stages", [*columns, "output\na row"])
    seconds = loader.seconds_per_step
    time = [_show(None if seconds is None else seconds * 1e3, ".2f")] * timed
    table.add_row(LOADER, *["-"] * 4, *time, "x".join(map(str, loader.output_shape)))
    for stage in stages:
        shape = stage.output_shape
        table.add_row(
            str(stage.stage),
            f"{stage.parameters:,}",
            f"{stage.head_parameters:,}",
            f"{stage.flops_per_sample / 1e9:.3f}",
            _show(stage.head_flops_per_sample / max(stage.flops_per_sample, 1), ".1%"),
            *([_show((stage.seconds_per_step or 0) * 1e3, ".2f")] * timed),
            "x".join(map(str, shape)) if shape else "-",
        )
    return table


def _memory_table(stages: Sequence[StageEstimate], rows: int) -> Table:
    """What a stage holds, and what crosses the links."""
    columns = ["stage", "weights\nMiB", "optimizer\nMiB", f"activations\nat {rows} rows"]
    columns += ["of it\nin buffers", "memory\nMiB", "KiB a row\non link"]
    table = _table("memory and links", columns)
    for stage in stages:
        activations, buffers = stage.activation_bytes, stage.buffer_bytes
        sizes = (stage.weight_bytes, stage.optimizer_bytes, activations, buffers)
        cells = [f"{size / 2**20:.1f}" for size in (*sizes, stage.memory_bytes)]
        link = f"{stage.link_bytes_per_sample / 1024:.1f}" if stage.output_shape else "-"
        table.add_row(str(stage.stage), *cells, link)
    return table


def _segments_line(stage: StageEstimate) -> str:
    names, count = stage.segments, len(stage.segments)
    span = f"{names[0]} .. {names[-1]}" if count > 1 else names[0]
    return f"stage {stage.stage}: {span} ({count} segment{'s' * (count > 1)})"
