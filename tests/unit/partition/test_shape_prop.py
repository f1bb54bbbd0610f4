"""Shapes of the segments' outputs, and images that do not fit a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dglpipe.config import CnnConfig, VggConfig
from dglpipe.models.meta import meta_copy
from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes
from dglpipe.partition.split import cut
from unit.partition.networks import (
    Net,
    conv,
    error,
    on_meta,
    real,
    same,
)


def test_the_output_shape_of_each_segment():
    traced = trace(on_meta(CnnConfig(width=4), 16))
    expected = [(4, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), (16, 4, 4), (10,)]
    assert propagate_shapes(traced, (5, 3, 16, 16)) == [(5, *shape) for shape in expected]


def test_the_check_accepts_real_networks():
    network, _ = real("cnn6")
    network.train()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    for values in (False, True):
        paper = trace(meta_copy(network, values))
        assert propagate_shapes(paper, (2, 3, 16, 16))[-1] == (2, 10)
    assert same(network.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_check_gives_the_shapes_of_a_real_run():
    traced = real("resnet18")[1]
    images, shapes = torch.randn(2, 3, 32, 32), []
    for part in cut(traced, range(len(traced.segments))):
        images = part.eval()(images)
        shapes.append(tuple(images.shape))
    assert propagate_shapes(traced, (2, 3, 32, 32)) == shapes


def test_an_image_that_is_too_small_is_refused():
    traced = trace(on_meta(VggConfig(name="vgg19_bn"), 8))
    text = error(lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size")
    assert "got 8; allowed: images that segment 11 (features.36) of the network" in text
    assert "fails on rows of shape (512, 1, 1)" in text
    assert "Output size is too small" in text


def test_an_empty_output_is_refused():
    traced = trace(Net(lambda net, x: net.a(x)[:, :, 9:], a=conv()))
    assert "Its output is empty" in error(
        lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size"
    )


def test_a_classifier_that_does_not_fit_is_refused():
    traced = trace(nn.Sequential(conv(), nn.Flatten(), nn.Linear(48, 5)))
    assert propagate_shapes(traced, (2, 3, 4, 4)) == [(2, 5)]
    text = error(lambda: propagate_shapes(traced, (2, 3, 8, 8)), "data.image_size")
    assert "segment 0 (0)" in text


def test_weights_of_another_type_than_the_images_are_refused():
    traced = trace(nn.Sequential(conv(), conv()).double())
    text = error(lambda: propagate_shapes(traced, (2, 3, 4, 4)), "model")
    assert "got 'weights of torch.float64 in segment 0 (0)'; allowed: weights of torch" in text
    assert propagate_shapes(traced, (2, 3, 4, 4), torch.float64) == [(2, 3, 4, 4)] * 2


@pytest.mark.parametrize("spoil", [lambda x: x.sum(), lambda x: x.flatten(0, 1)])
def test_outputs_without_a_row_for_each_row_are_refused(spoil):
    traced = trace(Net(lambda net, x: spoil(net.b(net.a(x))), a=conv(), b=conv()))
    text = error(lambda: propagate_shapes(traced, (2, 3, 4, 4)), "model")
    assert "from segment 1 (b)" in text
    assert "one tensor with one row per row of the batch" in text
