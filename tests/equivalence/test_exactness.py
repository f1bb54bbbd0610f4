"""K stages on P processes compute what one plain loop computes, bit for bit.

| j \ tick | 1 | 2 | 3 | 4 |
|---|---|---|---|---|
| stage 0 | batch 1 | batch 2 | batch 3 | batch 4 |
| stage 1 | | batch 1 | batch 2 | batch 3 |
| stage 2 | | | batch 1 | batch 2 |

Stage j at tick s works on batch s - j with the weights after batch s - j - 1: the same
numbers as stage after stage on one batch after the other.
"""

from __future__ import annotations

import itertools
import os
import signal

import oracle
import pytest
import torch
from harness import WorldError, layout, make_config, make_worker, run_world, train_all, train_world

from dglpipe.blueprint import draw
from dglpipe.data import open_data
from dglpipe.stream import Phase
from dglpipe.worker import plan_stream

DROPOUT = "model.dropout=0.2"


def assert_same_weights(first, second):
    """Every stage of two runs ended with the same bits."""
    assert len(first) == len(second) > 0
    assert first == second


def test_the_plan_has_an_uneven_batch_and_an_evaluation_in_the_middle():
    config = make_config()
    items = list(plan_stream(config, open_data(config.data, config.seed)).items())
    phases = [phase for phase, _ in itertools.groupby(item.phase for item in items)]
    assert phases == [Phase.TRAIN, Phase.TEST, Phase.TRAIN, Phase.TEST]
    assert [item.rows for item in items if item.phase is Phase.TRAIN] == 2 * [400, 400, 400, 237]


@pytest.mark.parametrize("stages", [2, 3, 6])
def test_weights_do_not_depend_on_the_number_of_processes(stages):
    configs = [
        make_config(f"pipeline.stages={stages}", DROPOUT, f"precision={precision}")
        for precision in ("fp32", "bf16")
    ]
    expected = [oracle.train(config, stages) for config in configs]
    assert len({*expected[0], *expected[1]}) == 2 * stages, "all stages differ from one another"
    for processes in range(1, stages + 1):
        runs = train_all(configs, layout(stages, processes))
        for run, hashes in zip(runs, expected, strict=True):
            assert_same_weights(run.hashes, hashes)
            assert {line.step for line in run.lines if line.kind == "test"} == {4, 8}
