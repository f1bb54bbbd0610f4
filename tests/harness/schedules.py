"""Small batch schedules."""

from __future__ import annotations

from typing import Any

from dglpipe.data.batch_schedule import BatchSchedule


def batch_schedule(**settings: Any) -> BatchSchedule:
    """Two epochs of training batches of 4, 4, 2 rows, each with test batches of 3, 2 rows.

    Args:
        settings: fields of the schedule that differ.
    """
    defaults = {
        "train": 10,
        "test": 5,
        "batch_size": 4,
        "test_batch_size": 3,
        "replicas": 1,
        "epochs": 2,
        "max_steps": None,
        "evaluate_every": 1,
    }
    return BatchSchedule(**{**defaults, **settings})
