"""The pools at the end of a stage: the head reads in front of them, the pooled map crosses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from dglpipe.partition.fx.pooling import split_pools, without_pools
from dglpipe.runtime.open_data import open_images
from harness.configs import build_stages, make_config

ROWS, SIDE = 2, 8


class Ends(nn.Module):
    """A convolution, and then `end(self, map)`."""

    def __init__(self, end, **modules):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.end = end
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.end(self, self.convolution(x))


def two_sizes(net, x):
    return F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 2))


def joined(net, x):
    return net.pool(x) + net.pool(x)


MAX = {"pool": nn.MaxPool2d(2)}
POOLED = {
    "module": Ends(lambda net, x: net.pool(F.relu(x)), **MAX),
    "function": Ends(lambda net, x: F.max_pool2d(x, 2)),
    "average": Ends(lambda net, x: net.pool(x), pool=nn.AvgPool2d(2)),
    "adaptive": Ends(lambda net, x: net.pool(x), pool=nn.AdaptiveAvgPool2d(4)),
    "two pools": Ends(lambda net, x: net.other(net.pool(x)), **MAX, other=nn.AvgPool2d(2)),
    "dropout after": Ends(lambda net, x: net.drop(net.pool(x)), **MAX, drop=nn.Dropout(0.5)),
    "dropout before": Ends(lambda net, x: net.pool(net.drop(x)), **MAX, drop=nn.Dropout(0.5)),
}
OTHERS = {
    "no pool": Ends(lambda net, x: F.relu(x)),
    "activation after": Ends(lambda net, x: F.relu(net.pool(x)), **MAX),
    "sum of pools": Ends(joined, **MAX),
    "size that is read": Ends(two_sizes),
    "flattened": Ends(lambda net, x: net.pool(x).flatten(1), **MAX),
    "nothing but a pool": nn.Sequential(nn.Dropout(0.5), nn.MaxPool2d(2)),
}


def traced(module):
    return fx.symbolic_trace(copy.deepcopy(module)).train()


def computed(*modules):
    torch.manual_seed(1)
    batch = torch.randn(ROWS, 3, SIDE, SIDE)
    for module in modules:
        batch = module(batch)
    return batch


@pytest.mark.parametrize("name", POOLED)
def test_both_parts_compute_what_the_whole_does(name):
    whole = traced(POOLED[name])
    expected, keys = computed(whole), set(whole.state_dict())
    body, pools = without_pools(whole)
    assert computed(body).shape == (ROWS, 4, SIDE, SIDE)
    assert torch.equal(computed(body, pools), expected)
    assert torch.equal(computed(whole), expected), "it stays as it was"
    tail = split_pools(whole)
    assert torch.equal(computed(whole, tail), expected)
    assert computed(whole).shape == (ROWS, 4, SIDE, SIDE)
    assert set(whole.state_dict()) == keys
    assert not tail.state_dict()
    assert split_pools(whole) is None


@pytest.mark.parametrize("name", OTHERS)
def test_other_ends_stay_whole(name):
    module = traced(OTHERS[name])
    code = module.code
    assert without_pools(module) is None
    assert split_pools(module) is None
    assert module.code == code


def network_of(stages, *words, meta=False):
    config = make_config(*words)
    return build_stages(config, open_images(config).info, stages, meta=meta)


CNN = {"before_pool": [8, 4, 4, 2, 2], "output": [4, 4, 2, 2, 2]}
"""Sides of the maps that the heads of cnn6 read, on images of 8x8 pixels."""


@pytest.mark.parametrize("reads", CNN)
@pytest.mark.parametrize("meta", [False, True])
def test_what_the_heads_of_cnn6_read(reads, meta):
    network = network_of(6, f"head.reads={reads}", meta=meta)
    spec = network.spec
    assert [spec.read_row(j)[1] for j in range(5)] == CNN[reads]
    assert [field.shape[1] for field in spec.fields] == [4, 4, 2, 2, 2]
    pooled = [pools is not None for pools in network.pools]
    assert pooled == [reads == "before_pool" and j in (0, 2) for j in range(6)]


@pytest.mark.parametrize("split", ["[2]", "[3]"])
def test_a_traced_network_of_torchvision(split):
    """VGG-11 has a pool behind its convolutions 0 and 1; behind 2 it has none."""
    words = ("model=vgg11_bn", "data=synthetic", "data.image_size=32", f"pipeline.split={split}")
    network = network_of(2, *words, meta=True)
    row, crossing = network.spec.read_row(0), network.spec.fields[0].shape
    assert (row == crossing) == (split == "[3]")
    assert row[1:] == ((16, 16) if split == "[2]" else (8, 8))


def test_nothing_flows_back_through_the_pool():
    network = network_of(6)
    stage, sent = network.learner(0), []
    logits = stage(torch.randn(ROWS, 1, 8, 8), sent.append)
    assert sent[0].shape[2:] == (4, 4)
    assert not sent[0].requires_grad
    assert logits.requires_grad


def test_methods_without_heads_keep_their_stages_whole():
    network = network_of(3, "method=backprop")
    assert network.pools == (None,) * 3
