"""Measurements of convergence: they change no weight, and equal what plain code measures."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from dglpipe.data.dataset import Request
from dglpipe.pipeline.weights import load_tensors
from dglpipe.runtime.open_data import open_images
from harness.configs import build_stages, in_test_all, layout, make_config
from harness.training import hash_all, train_all, train_world

PROBED = ("probe.every=2", "probe.batch_size=120", "evaluate.batch_size=50")
"""The probe batch has three parts."""
PLAIN = (
    *("schedule=constant", "optimizer.momentum=0", "optimizer.weight_decay=0", "epochs=2"),
    *("pipeline.stages=3", "optimizer.lr=0.05"),
)
CASES = {
    "dgl": ("model.dropout=0.2",),
    "bf16": ("precision=bf16", "optimizer.clip=0.1", "optimizer=adam"),
    "sequential": ("method=sequential",),
    "ddg": ("method=ddg",),
    "dni": ("method=dni", "optimizer.lr=0.0005"),
}


def measured(run):
    """(step, stage) -> gradient norm and drift."""
    lines = [line for line in run.lines if line.kind == "probe"]
    return {(line.step, line.stage): (line.gradient_norm, line.drift) for line in lines}


@pytest.mark.parametrize(
    ("case", "processes"),
    [("dgl", 3), *(in_test_all(*one) for one in product(CASES, (1, 2, 3)) if one != ("dgl", 3))],
)
def test_measurements_change_no_weight_and_do_not_depend_on_the_processes(case, processes):
    plain = make_config("pipeline.stages=3", "epochs=2", *CASES[case])
    probed = make_config("pipeline.stages=3", "epochs=2", *CASES[case], *PROBED)
    world = layout(3, processes)
    run = train_world(probed, world)
    assert run.hashes == hash_all([plain], world)[0]
    found = measured(run)
    rounds = 3 if case == "sequential" else 1
    assert found.keys() == {(step, j) for step in range(2, 8 * rounds + 1, 2) for j in range(3)}
    if processes > 1:
        assert found == measured(train_world(probed, layout(3, 1)))


@pytest.mark.slow
def test_replicas_measure_with_all_rows_of_the_probe_batch():
    plain, probed = (make_config("pipeline.stages=2", *more) for more in ((), PROBED))
    world = layout(2, 2, 2)
    run = train_world(probed, world)
    assert run.hashes == hash_all([plain], world)[0]
    assert measured(run).keys() == {(step, j) for step in range(2, 9, 2) for j in range(2)}


def weights_after(steps):
    """The runs that end after each of `steps`."""
    configs = [make_config(*PLAIN, f"max_steps={count}") for count in steps]
    return train_all(configs, layout(3, 1))


def test_the_gradient_norm_is_the_step_of_plain_gradient_descent():
    """Without momentum and weight decay, a step is rate x gradient."""
    before, after = weights_after([3, 4])
    found = measured(train_world(make_config(*PLAIN, *PROBED, "max_steps=4"), layout(3, 1)))
    for j in range(3):
        old, new = before.tensors[0, j], after.tensors[0, j]
        keys = [key for key in old if "running" not in key and "num_batches" not in key]
        squares = [((new[key] - old[key]).double() / 0.05).square().sum() for key in keys]
        assert found[4, j][0] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-3)


def moments(config, run):
    """Mean and standard deviation by channel of the inputs of every stage, for the probe batch."""
    source = open_images(config)
    network = build_stages(config, source.info, 3)
    indices = torch.arange(120) * source.info.test // 120
    ((batch, _),) = source.load().batches([Request(False, 1, indices)])
    found = []
    for j in range(3):
        found.append((batch.mean((0, 2, 3)), batch.std((0, 2, 3), correction=0)))
        module = network.learner(j)
        load_tensors(module, run.tensors[0, j])
        with torch.no_grad():
            batch = module.eval().output(module.features(batch))
    return [torch.stack(pair) for pair in found]


def test_the_drift_is_the_distance_of_the_moments():
    config = make_config(*PLAIN)
    before, after = (moments(config, run) for run in weights_after([2, 4]))
    found = measured(train_world(make_config(*PLAIN, *PROBED, "max_steps=4"), layout(3, 1)))
    assert found[2, 0][1] is None, "there is no earlier measurement"
    for j in range(3):
        expected = (after[j] - before[j]).norm() / before[j].norm()
        assert found[4, j][1] == pytest.approx(float(expected), rel=1e-4, abs=1e-9)
    assert found[4, 0][1] == 0, "the data set does not drift"
    assert found[4, 1][1] > 1e-3
