"""Crossings and measured parts of benchmarks/memory."""

from __future__ import annotations

import pytest

from benchmarks.memory.crossings import MIB, crossings, fullest
from benchmarks.memory.memory import measure
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose


def row(method, batch, *mib):
    peaks = [{"weights": MIB, "other": (one - 1) * MIB} for one in mib]
    return {"method": method, "processes": 2, "batch": batch, "peak_bytes": peaks}


def test_the_device_memory_at_which_a_method_overtakes_another():
    """DGL grows by 1 MiB a row from 20, replicas by 2 from 10: equal at 10 rows, in 30 MiB."""
    rows = [
        *(row("DGL", 5, 25, 3), row("data-parallel", 5, 20, 20)),
        *(row("DGL", 15, 9, 35), row("data-parallel", 15, 40, 40)),
        *(row("DGL", 25, 45, 1), row("data-parallel", 25, 60, 60)),
    ]
    assert fullest(rows[0]) == 25
    assert crossings(rows) == [
        "2 processes: data-parallel needs less up to 30 MiB, DGL from there on (batch 10)"
    ]
    assert crossings(rows[2:]) == []


@pytest.mark.slow
def test_the_gradients_of_a_replica_count_as_weights():
    words = ["method=backprop", "pipeline.replicas=2", "model=cnn4", "model.width=8", "max_steps=3"]
    config = compose(parse_arguments([*words, "batch_size=4", "data=synthetic", "data.samples=16"]))
    for peak in measure(config):
        # Momentum is a copy of the weights, and the gradients are another.
        assert 2 * peak["optimizer"] <= peak["weights"] < 2.1 * peak["optimizer"]
        assert peak["activations"] > 0
