"""Backprop in one process, on replicas and in every pipeline gives the same training."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.nn.functional import cross_entropy

from dglpipe.data import Request
from dglpipe.data.sampler import epoch_order
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import plan_layout
from harness.configs import build_stages, in_test_all, make_config
from harness.training import train_world

PLAIN = (
    *("model=custom", "model.target=harness.plug_ins:plain_network", "model.args={depth:6}"),
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


def test_the_reference_is_a_plain_loop(reference):
    """The loop written by hand."""
    config = make_config(*PLAIN)
    source = open_images(config)
    data, size = source.load(), source.info.train
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = build_stages(config, source.info, 1).learner(0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4, fused=True)
    orders = [(epoch, epoch_order(config.seed, epoch, size)) for epoch in (1, 2)]
    batches = [(epoch, rows) for epoch, order in orders for rows in order.split(480)]
    for epoch, rows in batches[:5]:
        ((images, labels),) = data.batches([Request(True, epoch, rows)])
        optimizer.zero_grad()
        cross_entropy(network(images, None), labels).backward()
        optimizer.step()
    torch.set_num_threads(threads)
    for key, tensor in network.segments.state_dict().items():
        assert torch.equal(merged(reference)[key], tensor), key


WAYS = {
    "ddp": "pipeline.replicas=2",
    "gpipe": "pipeline.stages=2 method.schedule=gpipe",
    "gpipe_3": "pipeline.stages=3 method.schedule=gpipe method.microbatches=3",
    "1f1b": "pipeline.stages=2 method.schedule=1f1b method.microbatches=2",
    "1f1b_3": "pipeline.stages=3 method.microbatches=8",
    "interleaved": "pipeline.stages=4 method.schedule=interleaved_1f1b",
    "zbv": "pipeline.stages=4 method.schedule=zbv",
}


@pytest.mark.parametrize(
    "way", [in_test_all(way) if way in ("gpipe", "1f1b", "interleaved") else way for way in WAYS]
)
def test_weights_agree_to_rounding(way, reference):
    run = train(*WAYS[way].split())
    one, other = merged(reference), merged(run)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=key)


def test_missing_exits_are_left_out():
    """Only the last stage has an exit; all stages log the same learning rate and speed."""
    run = train(*WAYS["zbv"].split())
    last = [line for line in run.lines if line.step == 5]
    tests = {line.stage: line.accuracy for line in last if line.kind == "test"}
    assert tests.keys() == {3, "ensemble"}
    assert tests[3] == tests["ensemble"] > 0
    training = {line.stage: line for line in last if line.kind == "train"}
    assert sorted(training) == [0, 1, 2, 3]
    assert [training[j].accuracy is None and training[j].loss is None for j in range(4)] == [
        *(True, True, True, False)
    ]
    assert all(line.samples_per_second and line.learning_rate for line in training.values())
    assert [stage["head_parameters"] for stage in run.finals] == [0] * 4
    assert [stage["process"] for stage in run.finals] == [0, 1, 1, 0]


@pytest.mark.parametrize("way", ["ddp", *map(in_test_all, ("1f1b", "zbv"))])
def test_the_gradient_of_the_whole_network_is_clipped(way):
    clipped = merged(train("optimizer.clip=0.01"))
    run = train("optimizer.clip=0.01", *WAYS[way].split())
    for key, tensor in merged(run).items():
        torch.testing.assert_close(tensor, clipped[key], rtol=1e-4, atol=1e-5, msg=key)
    free = merged(train())
    assert not all(torch.allclose(clipped[key], free[key], 1e-4, 1e-5) for key in free)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["gpipe", "1f1b_3", "interleaved", "zbv"])
def test_real_networks_run_in_low_precision(way):
    """Batch norm, dropout, bf16 and channels last on the wire."""
    config = make_config(
        *("method=backprop", "model.dropout=0.1", "precision=bf16", "batch_size=240"),
        *("epochs=6", "optimizer.lr=0.05", "log_every=1", *WAYS[way].split()),
    )
    run = train_world(config, plan_layout(config.pipeline, config.method, cores=2))
    losses = [line.loss for line in run.lines if line.kind == "train" and line.loss is not None]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.slow
def test_a_pipeline_is_resumed(tmp_path):
    words = WAYS["1f1b"].split()
    whole = train(*words).hashes
    settings = ("checkpoint.every=1", "checkpoint.keep=5", "max_steps=5", "resume=auto")
    config = make_config(*PLAIN, *words, *settings)
    layout = plan_layout(config.pipeline, config.method, 2)
    train_world(config, layout, tmp_path)
    for step in (4, 5):  # as after a kill
        shutil.rmtree(tmp_path / "checkpoints" / f"step_{step:08d}")
    assert train_world(config, layout, tmp_path).hashes == whole
