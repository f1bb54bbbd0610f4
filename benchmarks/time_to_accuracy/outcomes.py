"""Rows of a result file of `time_to_accuracy.py`: a method and its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import UNDERPERFORMS

NEVER = float("inf")
"""Time to an accuracy that a run did not reach."""


def chosen(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs with the learning rate that the method keeps."""
    return [run for run in row["runs"] if run["rate"] == row["rate"]]


def seconds(row: Mapping[str, Any]) -> list[float]:
    """Seconds to the accuracy of these runs."""
    return [seconds_of(run) for run in chosen(row)]


def seconds_of(run: Mapping[str, Any]) -> float:
    return NEVER if run["seconds"] is None else float(run["seconds"])


def underperforms(row: Mapping[str, Any]) -> bool:
    """Whether a way of backprop is too far below its bound for a ratio."""
    return row["of_its_bound"] is not None and row["of_its_bound"] < UNDERPERFORMS
