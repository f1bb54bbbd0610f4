"""Heads on whatever a network hands on, and what a grouped convolution costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from dglpipe.config import HeadConfig
from dglpipe.features import Features, channels_at
from dglpipe.flops import count_flops
from dglpipe.heads import head_on
from dglpipe.paper import check_input
from dglpipe.partition import trace

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
    shapes = check_input(traced, (2, 3, 64, 64))
    inner = list(enumerate(shapes[:-1], 1))
    found = [channels_at(traced.operations, traced.starts[at], row[1:]) for at, row in inner]
    # A cut behind the class token's selection leaves vectors: (C).
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
