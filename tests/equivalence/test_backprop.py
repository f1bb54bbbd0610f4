"""Backprop in one process, on replicas and through every pipeline is the same training."""

from __future__ import annotations

import pytest
import torch

from dglpipe.topology import plan_layout
from harness import make_config, train_world

PLAIN = (
    *("model=custom", "model.target=plug_ins:plain_network", "model.args={depth:6}"),
    *("method=backprop", "batch_size=480", "max_steps=5", "epochs=2"),
    *("optimizer.lr=0.05", "schedule=constant", "log_every=1"),
)
"""Six convolutions without batch norm; the third batch has 477 rows."""


def train(*overrides):
    config = make_config(*PLAIN, *overrides)
    return train_world(config, plan_layout(config.pipeline, config.method, cores=2))


def merged(run):
    return {key: tensor for part in run.tensors.values() for key, tensor in part.items()}


@pytest.fixture(scope="module")
def reference():
    return train()


WAYS = {
    "ddp": "pipeline.replicas=2",
    "gpipe": "pipeline.stages=2 method.schedule=gpipe",
    "gpipe_3": "pipeline.stages=3 method.schedule=gpipe method.microbatches=3",
    "1f1b": "pipeline.stages=2 method.schedule=1f1b method.microbatches=2",
    "1f1b_3": "pipeline.stages=3 method.microbatches=8",
    "interleaved": "pipeline.stages=4 method.schedule=interleaved_1f1b",
    "zbv": "pipeline.stages=4 method.schedule=zbv",
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_agree_to_rounding(way, reference):
    run = train(*WAYS[way].split())
    one, other = merged(reference), merged(run)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=key)
