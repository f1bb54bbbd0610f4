"""Synthesisers: from the output of a stage to the predicted gradient, of the same shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.models.features import Features
from dglpipe.models.synthesiser import Synthesiser

ROWS, CLASSES = 4, 3
ROWS_OF = {
    "maps": Features((6, 5, 5), 0),
    "channels last": Features((5, 4, 6), 2),
    "vectors": Features((6,), 0),
    "tokens": Features((7, 6), 1),
    "tokens, channels first": Features((6, 7), 0),
}


def made(kind, classes=CLASSES, hidden=2, width=8):
    torch.manual_seed(0)
    module = Synthesiser(ROWS_OF[kind], hidden, width, 3, classes)
    nn.init.normal_(module.layers[-1].weight)
    return module, torch.randn(ROWS, *ROWS_OF[kind].shape), torch.arange(ROWS) % CLASSES


@pytest.mark.parametrize("kind", ROWS_OF)
def test_the_prediction_has_the_shape_of_the_features(kind):
    module, features, labels = made(kind)
    before = features.clone()
    assert module(features, labels).shape == features.shape
    assert torch.equal(features, before)


@pytest.mark.parametrize("kind", ROWS_OF)
def test_the_labels_are_read_if_wanted(kind):
    module, features, labels = made(kind)
    assert not torch.equal(module(features, labels), module(features, labels.flip(0)))
    module, features, labels = made(kind, classes=0)
    assert torch.equal(module(features, labels), module(features, labels.flip(0)))
    assert module.context is None


@pytest.mark.parametrize("kind", ["vectors", "tokens", "tokens, channels first"])
def test_every_token_is_a_row_of_its_own(kind):
    """A change of one token changes its prediction and, through the norms alone, the others."""
    module, features, labels = made(kind)
    module.eval()
    other = features.clone()
    at = ROWS_OF[kind].channels_at
    token = tuple(slice(None) if axis == at else 0 for axis in range(features.dim() - 1))
    other[0][token] += 1
    changed = (module(features, labels) - module(other, labels)).abs() > 0
    assert changed[0][token].any()
    assert not changed[1:].any()


def test_the_published_form():
    """5x5 convolutions to the width of the features; a zero weight at the end, with a bias."""
    module = Synthesiser(Features((128, 10, 10), 0), 2, None, 5, 10)
    assert [layer.weight.shape for layer in module.layers] == [(128, 128, 5, 5)] * 3
    assert not module.layers[-1].weight.any()
    assert module.layers[-1].bias.any()
    assert (module.context.in_features, module.context.out_features) == (10, 128)
    assert [type(norm) for norm in module.norms] == [nn.BatchNorm2d] * 2
