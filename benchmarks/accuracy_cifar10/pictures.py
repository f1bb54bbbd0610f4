"""The pictures of the accuracy study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.accuracy_cifar10.results import Results, runs_of
from benchmarks.accuracy_cifar10.studies import settings
from benchmarks.accuracy_cifar10.tables import work_of_backprop
from benchmarks.common import new_figure

DOCS = Path(__file__).parents[2] / "docs"
HEADS = ("mlp_sr", "cnn_sr")
"""Heads with several numbers of stages."""


def draw(results: Results, folder: Path = DOCS) -> list[Path]:
    """Draws what has at least two points, and returns the files."""
    if not runs_of(results, "stages", "backprop"):
        return []
    pictures = {"accuracy_stages.png": draw_stages, "accuracy_work.png": draw_work}
    return [folder / name for name, one in pictures.items() if _draw(results, folder / name, one)]


def _draw(results: Results, file: Path, plot: Callable[[Results, Any], int]) -> bool:
    figure = new_figure(6, 3.8)
    axes = figure.subplots()
    is_drawn = plot(results, axes) > 1
    if is_drawn:
        axes.set_ylabel("test accuracy of the last exit, %")
        axes.legend(fontsize="small")
        figure.savefig(file, dpi=110)
    return is_drawn


def draw_stages(results: Results, axes: Any) -> int:
    """The accuracy over the number of stages, by head; returns the number of points."""
    count = 0
    for head in HEADS:
        points = [(1, accuracies(results, "stages", "backprop"))]
        for stages in (2, 3, 6):
            found = accuracies(results, "stages", f"{head} K={stages}")
            points += [(stages, found)] if found else []
        middle = [mean(values) for _, values in points]
        ends = [
            [at - min(values) for at, (_, values) in zip(middle, points, strict=True)],
            [max(values) - at for at, (_, values) in zip(middle, points, strict=True)],
        ]
        axes.errorbar([k for k, _ in points], middle, ends, marker="o", capsize=3, label=head)
        count = max(count, len(points))
    axes.set_xticks([1, 2, 3, 6], ["1 (backprop)", "2", "3", "6"])
    axes.set_xlabel("stages")
    return count


def draw_work(results: Results, axes: Any) -> int:
    """The accuracy over the work of a step: a line for each head, a point for each setting of six
    stages; returns the number of points."""
    base = work_of_backprop(results, "stages")
    points: dict[str, list[tuple[float, float]]] = {}
    for one in settings():
        runs = runs_of(results, one.study, one.name)
        if runs and base and one.study in ("stages", "heads", "objectives"):
            line = one.name.partition(" K=")[0] if one.study != "objectives" else one.name
            place = (
                runs[0]["flops_per_sample"] / base,
                mean(accuracies(results, one.study, one.name)),
            )
            points.setdefault(line, []).append(place)
    for at, (name, places) in enumerate(points.items()):
        x, y = zip(*sorted(places), strict=True)
        axes.plot(x, y, marker="osD^v<>ph*XP"[at % 12], label=name)
    axes.set_xlabel("FLOPs of a step over backprop")
    return sum(map(len, points.values()))


def accuracies(results: Results, study: str, name: str) -> list[float]:
    """The accuracy of the last exit of every seed, in percent."""
    return [100 * run["exits"][-1] for run in runs_of(results, study, name)]
