"""R replicas of the chain learn as one chain on the whole batch."""

from __future__ import annotations

import pytest
import torch

from harness.configs import layout, make_config
from harness.training import train_all, train_world

PLAIN = (
    "model=custom",
    "model.target=harness.plug_ins:plain_network",
    "head=linear",
    "optimizer.clip=1",
)
"""Without batch norm and dropout, a row does not depend on the other rows of its batch."""


@pytest.fixture(scope="module")
def with_batch_norm():
    """K=2, P=2, R=2, with test batches in which the second replica has no row at the end."""
    configs = [
        make_config("model.dropout=0.2", "pipeline.replicas=2", "batch_size=401"),
        make_config(
            "model.dropout=0.2",
            "pipeline.replicas=2",
            "batch_size=401",
            "evaluate.batch_size=359",
        ),
    ]
    return train_all(configs, layout(2, 2, 2))


def test_replicas_end_with_equal_weights(with_batch_norm):
    run, _ = with_batch_norm
    for j in range(2):
        first, second = run.tensors[0, j], run.tensors[1, j]
        assert first.keys() == second.keys()
        assert len(first) > 5
        for key in first:
            assert torch.equal(first[key], second[key]), key


def test_replicas_drop_different_units(with_batch_norm):
    """With equal masks one replica would repeat the other."""
    run, _ = with_batch_norm
    one = train_world(make_config("model.dropout=0.2", "batch_size=401"), layout(2))
    assert one.hashes != run.hashes


def test_every_row_is_tested_once(with_batch_norm):
    """The last test batch has one row: the second replica has none and continues to train."""
    whole, uneven = with_batch_norm
    assert [(line.stage, line.step) for line in uneven.tests()] == [(0, 8), (1, 8), ("ensemble", 8)]
    for one, other in zip(whole.tests(), uneven.tests(), strict=True):
        assert one.accuracy == other.accuracy
    for (replica, j), tensors in uneven.tensors.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, whole.tensors[replica, j][key], msg=key)


def test_replicas_do_not_depend_on_the_number_of_processes(with_batch_norm):
    run, _ = with_batch_norm
    config = make_config("model.dropout=0.2", "pipeline.replicas=2", "batch_size=401")
    assert train_world(config, layout(2, 1, 2)).hashes == run.hashes


def test_replicas_compute_the_gradients_of_one_chain():
    """201 and 200 rows, then 117 each: the mean is over rows, not over replicas."""
    config = make_config(*PLAIN, "batch_size=401", "log_every=1")
    one = train_world(config, layout(2))
    config.pipeline.replicas = 2
    two = train_world(config, layout(2, 2, 2))
    for j in range(2):
        assert one.tensors[0, j].keys() == two.tensors[0, j].keys()
        for key, tensor in one.tensors[0, j].items():
            assert not torch.equal(tensor, torch.zeros_like(tensor)), key
            torch.testing.assert_close(two.tensors[0, j][key], tensor, rtol=1e-4, atol=1e-6)
    lines = [line for line in one.lines if line.loss is not None]
    assert len(lines) == 2 * (8 + 2)
    by_key = {(line.kind, line.step, line.stage): line for line in two.lines}
    for line in lines:
        same = by_key[line.kind, line.step, line.stage]
        assert same.loss == pytest.approx(line.loss, rel=1e-4)
        assert same.accuracy == pytest.approx(line.accuracy, abs=0.005)
