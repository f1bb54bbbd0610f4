"""Heads on features of any shape, and the FLOPs of a grouped convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from dglpipe.config import HeadConfig
from dglpipe.models.features import Features
from dglpipe.models.heads import head_on
from dglpipe.partition.channels import channels_at
from dglpipe.partition.flops import count_flops
from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes

NETWORKS = {
    "maps": (lambda: models.resnet18(num_classes=5), {0}),
    "channels last": (
        lambda: models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=5),
        {2},
    ),
    "tokens": (lambda: models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=5), {1}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_head_reads_the_channels_of_every_cut(kind):
    build, places = NETWORKS[kind]
    traced = trace(build().eval())
    shapes = propagate_shapes(traced, (2, 3, 64, 64))
    inner = list(enumerate(shapes[:-1], 1))
    found = [channels_at(traced.operations, traced.starts[at], row[1:]) for at, row in inner]
    # A cut after the selection of the class token has vectors as features: (C).
    assert {place for place, (_, row) in zip(found, inner, strict=True) if len(row) > 2} == places
    for place, (_, row) in zip(found, inner, strict=True):
        features = Features(row[1:], place)
        assert features.channels == row[1 + place]
        for name in ("mlp_sr", "mlp", "linear"):
            head = head_on(HeadConfig(name=name), features, 5)
            assert head(torch.randn(row)).shape == (2, 5)


def test_channels_last_and_tokens_are_what_their_names_say():
    batch = torch.randn(2, 4, 6, 3)
    adapter = Features((4, 6, 3), 2).adapter()
    assert torch.equal(adapter(batch), batch.permute(0, 3, 1, 2))
    assert Features((4, 6, 3), 2).side == (4, 6)
    tokens = torch.randn(2, 7, 3)
    assert torch.equal(Features((7, 3), 1).adapter()(tokens), tokens.mean(dim=1))
    assert Features((3, 4, 6), 0).adapter() is None


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_every_part_of_a_convolution_costs_what_its_forward_does(groups):
    with torch.device("meta"):
        convolution = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
    forward = 2 * 5 * 5 * 8 * (8 // groups) * 9
    assert count_flops(convolution, (8, 5, 5)) == (2 * forward, forward)


@pytest.mark.parametrize("rows", [3, 5])
def test_linear_layers_and_attention_cost_their_products(rows):
    """A multiply-add is 2; backward makes both gradients of every product."""
    with torch.device("meta"):
        linear = nn.Linear(7, rows, bias=False)
    assert count_flops(linear, (4, 7)) == (2 * 2 * 4 * 7 * rows, 2 * 4 * 7 * rows)

    class Attends(nn.Module):
        def forward(self, batch):
            return nn.functional.scaled_dot_product_attention(batch, batch, batch)

    forward = 2 * 2 * (rows * rows * 8)  # scores, and their sums of values
    own, gradients = count_flops(Attends(), (1, rows, 8))
    assert own == forward
    assert 2 * forward <= gradients <= 3 * forward


class Block(nn.Module):
    """One operation: its convolutions follow a condition that tracing cannot evaluate."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(batch) if bool(batch.sum() < 1e9) else batch


class Scales(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, batch):
        return batch * self.scale


@pytest.mark.parametrize(
    ("part", "place"),
    [
        (lambda: Block(nn.Conv2d(4, 4, 3, padding=1)), 0),
        (lambda: Block(nn.Linear(8, 8)), 2),
        (lambda: Scales((4, 1, 1)), 0),
        (lambda: Scales((1, 4, 1, 1)), 0),
        (lambda: Scales((8,)), 2),
    ],
)
def test_a_block_that_is_one_operation_and_weights_in_arithmetic(part, place):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), part(), nn.Flatten(), nn.Linear(256, 3))
    traced = trace(network)
    assert traced.segments[1].name.startswith("1")
    assert channels_at(traced.operations, traced.starts[1], (4, 8, 8)) == place


def test_a_part_by_hand_may_be_a_sequence_that_cannot_be_traced():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Sequential(Block(nn.Conv2d(4, 64, 3, padding=1)), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 3)),
    )
    network[1][0].inner.weight.data.zero_()
    big = nn.Sequential(nn.Sequential(Block(nn.Linear(64, 500))), nn.Sequential(nn.Linear(500, 3)))
    assert [segment.name for segment in trace(big).segments] == ["0", "1.0"]
    assert trace(network).segments[1].name.startswith("1")
