"""The tables of the accuracy study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy_cifar10.results import RESULTS, Results, runs_of
from benchmarks.accuracy_cifar10.studies import MEASURED, SEEDS, settings
from benchmarks.common import interval, ratios, spread
from benchmarks.memory.crossings import MIB

STEPS = RESULTS.with_name("imagenet_steps.json")
SPEED = RESULTS.with_name("speed.json")
README = Path(__file__).parent / "README.md"
PAGE = Path(__file__).parents[2] / "docs" / "learning.md"
CHOICES = ("stages", "heads", "objectives", "fastcnn")
"""The studies of docs/learning.md."""
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"


def tables(results: Results) -> str:
    """All tables: of every study, of the steps on ImageNet networks, and of the convergence."""
    lines = study_tables(results, list(dict.fromkeys(one.study for one in settings())))
    lines = lines or ["No accuracy is stored yet.", ""]
    if STEPS.exists():
        lines += [*steps_table(json.loads(STEPS.read_text())["rows"]), ""]
    measured = results.runs.get(f"stages/{MEASURED}/{SEEDS[0]}", {}).get("convergence")
    if measured:
        lines += convergence_table(measured)
    return "\n".join(lines)


def choices(results: Results) -> str:
    """The tables of docs/learning.md."""
    lines = study_tables(results, CHOICES)
    if SPEED.exists():
        lines += [*speed_table(json.loads(SPEED.read_text())["rows"]), ""]
    return "\n".join(lines)


def study_tables(results: Results, studies: Sequence[str]) -> list[str]:
    """A table of every study: the exits and the ensemble in percent, mean and range over seeds."""
    lines: list[str] = []
    for study in studies:
        rows = [
            row(one.name, runs, work_of_backprop(results, study))
            for one in settings()
            if one.study == study and (runs := runs_of(results, study, one.name))
        ]
        if rows:
            head = [f"| {study} | seeds | work | exits | ensemble |", "|---|---|---|---|---|"]
            lines += [*head, *rows, ""]
    return lines


def speed_table(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Samples a second of every setting over backprop on one thread; medians over the
    rounds, with the range."""
    base = rows["backprop"]["samples_per_second"]["1"]
    lines = ["| K = 6 | speed, 2 processes | 6 processes | KiB a sample up | down |"]
    lines.append("|---|---|---|---|---|")
    for name, row in rows.items():
        if name == "backprop":
            continue
        speeds = (spread(ratios(row["samples_per_second"][p], base)) for p in ("2", "6"))
        sizes = (f"{row[f'{way}_bytes_per_sample'] / 1024:.1f}" for way in ("link", "down"))
        lines.append(f"| {name} | {' | '.join((*speeds, *sizes))} |")
    return lines


def steps_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A row for every experiment of `imagenet_steps.py`; values by stage."""
    lines = ["| experiment, steps | loss, first ten | last ten | MiB, planned | measured |"]
    lines.append("|---|---|---|---|---|")
    for one in rows:
        losses = (", ".join(f"{x:.2f}" for x in one[key]) for key in ("first_loss", "last_loss"))
        sizes = (
            ", ".join(f"{x / MIB:.0f}" for x in one[key])
            for key in ("planned_bytes", "measured_bytes")
        )
        lines.append(f"| {one['experiment']}, {one['steps']} | {' | '.join((*losses, *sizes))} |")
    return lines


def convergence_table(measured: dict[str, dict[str, list[float]]]) -> list[str]:
    """Rows of the first and the last epoch by stage, of one seed."""
    head = f"| {MEASURED}, mean of an epoch | gradient norm, first, last | drift, first, last |"
    rows = []
    for stage, norms in measured["gradient_norm"].items():
        drifts = measured["drift"][stage]
        ends = (f"{one[0]:.3f}, {one[-1]:.3f}" for one in (norms, drifts))
        rows.append(f"| stage {stage} | {' | '.join(ends)} |")
    return [
        head,
        "|---|---|---|",
        *rows,
        "",
        "![Convergence by stage](results/convergence.png)",
        "",
    ]


def documents(results: Results) -> dict[Path, str]:
    """Document -> the text between its marks."""
    return {README: tables(results), PAGE: choices(results)}


def write(document: Path, text: str) -> None:
    """Writes `text` between the marks of `document`."""
    before, _, rest = document.read_text().partition(BEGIN)
    document.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def written(document: Path) -> str:
    """The text between the marks of `document`."""
    return document.read_text().partition(BEGIN)[2].partition(END)[0]


OWN_BACKPROP = {"alternatives": "alternatives: backprop", "fastcnn": "fastcnn: backprop"}
"""Studies on other networks, and their setting with backprop."""


def work_of_backprop(results: Results, study: str) -> float | None:
    """FLOPs per sample of backprop on the network of `study`; None if it has not run. The steps of
    sequential training are of different size."""
    if study == "sequential":
        return None
    name = OWN_BACKPROP.get(study)
    runs = runs_of(results, study, name) if name else runs_of(results, "stages", "backprop")
    return runs[0]["flops_per_sample"] if runs else None


def row(name: str, runs: Sequence[dict[str, Any]], backprop: float | None) -> str:
    exits = [
        share([run["exits"][at] for run in runs])
        for at in range(len(runs[0]["exits"]))
        if runs[0]["exits"][at] is not None
    ]
    ensemble = share([run["ensemble"] for run in runs])
    work = f"{runs[0]['flops_per_sample'] / backprop:.2f}" if backprop else "-"
    return f"| {name} | {len(runs)} | {work} | {', '.join(exits)} | {ensemble} |"


def share(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return interval(mean(percent), min(percent), max(percent), 1)
