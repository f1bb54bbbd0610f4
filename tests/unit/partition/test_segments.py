"""Segments of a network: their number, their names, and where a cut may lie."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dglpipe.config import CnnConfig, ResnetCifarConfig, ResnetConfig, VggConfig
from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes
from unit.partition.networks import (
    Arithmetic,
    Net,
    check_exact,
    conv,
    names_of,
    on_meta,
    real,
)

COUNTS = {
    "cnn4": (CnnConfig(name="cnn4"), 4, 8),
    "cnn6": (CnnConfig(name="cnn6"), 6, 8),
    "vgg11_bn": (VggConfig(name="vgg11_bn"), 8, 32),
    "vgg13_bn": (VggConfig(name="vgg13_bn"), 10, 32),
    "vgg19_bn": (VggConfig(name="vgg19_bn"), 16, 32),
    "resnet18": (ResnetConfig(name="resnet18"), 9, 32),
    "resnet152": (ResnetConfig(name="resnet152"), 51, 32),
    "resnet110_cifar": (ResnetCifarConfig(name="resnet110_cifar"), 55, 32),
}


@pytest.mark.parametrize(("config", "count", "size"), COUNTS.values(), ids=COUNTS)
def test_number_and_names_of_the_segments(config, count, size):
    traced = trace(on_meta(config, size))
    names = [segment.name for segment in traced.segments]
    assert len(names) == count
    assert len(set(names)) == count
    if count < 20:
        shapes = propagate_shapes(traced, (2, 3, size, size))
        assert len(shapes) == count
        assert shapes[-1] == (2, 10)


NAMES = {
    "cnn6": ["layers.0", "layers.1", "layers.2", "layers.3", "layers.4", "layers.5"],
    "vgg11_bn": [f"features.{at}" for at in (0, 4, 8, 11, 15, 18, 22, 25)],
    "resnet18": ["conv1", *(f"layer{group}.{at}" for group in (1, 2, 3, 4) for at in (0, 1))],
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name, expected):
    assert [segment.name for segment in real(name)[1].segments] == expected


def test_operations_before_the_first_weights_belong_to_segment_0():
    modules = {"pool": nn.MaxPool2d(2), "norm": nn.BatchNorm2d(3), "a": conv(), "b": conv()}
    network = nn.Sequential(OrderedDict(modules))
    assert [len(segment.nodes) for segment in trace(network.eval()).segments] == [3, 1]
    assert names_of(network) == ["norm", "b"]


def test_a_residual_branch_is_not_cut():
    network = Net(lambda net, x: net.c(x + net.b(F.relu(net.a(x)))), a=conv(), b=conv(), c=conv())
    assert names_of(network) == ["a", "c"]
    check_exact(network)


def test_a_pre_norm_block_is_cut_in_front_of_its_norm():
    def forward(net, x):
        x = net.stem(x) * 2
        x = x + net.a(net.norm_a(x))
        return net.b(net.norm_b(x)) + x

    layers = {name: conv() for name in ("stem", "a", "b")}
    norms = {name: nn.BatchNorm2d(3) for name in ("norm_a", "norm_b")}
    network = Net(forward, **layers, **norms)
    assert names_of(network) == ["stem", "norm_a", "norm_b"]
    check_exact(network)


def test_a_norm_is_not_cut_from_the_operation_before_it():
    def forward(net, x):
        x = net.norm(net.stem(x))
        return x + net.a(F.relu(x))

    network = Net(forward, stem=conv(), norm=nn.BatchNorm2d(3), a=conv())
    assert names_of(network) == ["stem"]


@pytest.mark.parametrize(
    "flat",
    [
        lambda net, x: torch.flatten(x, 1),
        lambda net, x: x.flatten(start_dim=1),
        lambda net, x: net.flatten(x),
        lambda net, x: x.view(x.size(0), -1),
        lambda net, x: x.reshape((x.shape[0], -1)),
        lambda net, x: torch.reshape(x, (-1, 48)),
        lambda net, x: x.mean((2, 3)).repeat(1, 16),
        lambda net, x: x.mean(dim=[-2, -1]).repeat(1, 16),
    ],
)
def test_the_classifier_stays_with_the_last_segment(flat):
    def forward(net, x):
        return net.d(F.relu(net.c(flat(net, net.b(net.a(x))))))

    layers = {"a": conv(), "b": conv(), "c": nn.Linear(48, 5), "d": nn.Linear(5, 2)}
    network = Net(forward, flatten=nn.Flatten(), **layers)
    assert names_of(network) == ["a", "b"]
    check_exact(network)


def test_other_reshapes_are_no_flattening():
    def forward(net, x):
        x = net.a(x).flatten(2).view(2, 3, 4, 4).mean(dim=(2, 3), keepdim=True)
        return net.b(x.flatten(0).view(2, 3, 1, 1))

    assert names_of(Net(forward, a=conv(), b=conv())) == ["a", "b"]


def test_a_network_that_flattens_its_images_first_is_cut():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, 2))
    assert names_of(network) == ["1", "3"]
    check_exact(network)
    assert propagate_shapes(trace(network), (2, 3, 4, 4)) == [(2, 5), (2, 2)]


def test_parameters_buffers_and_constants_stay_what_they_are():
    network = Arithmetic()
    assert names_of(network) == ["a", "scale", "b"]
    parts = check_exact(network)
    assert sorted(parts[0].state_dict()) == [
        *("a.bias", "a.weight", "again.bias", "again.weight", "saved")
    ]
    assert sorted(parts[1].state_dict()) == ["scale"]
    assert sorted(parts[2].state_dict()) == [
        *("alone", "b.bias", "b.weight", "unused.bias", "unused.weight")
    ]
    assert isinstance(parts[1].scale, nn.Parameter)


def test_a_network_without_weights_is_one_segment():
    assert names_of(nn.Sequential(nn.ReLU(), nn.Flatten())) == ["network"]


def test_a_module_that_is_called_twice_begins_two_segments():
    assert names_of(Net(lambda net, x: net.a(net.a(x)), a=conv())) == ["a", "a#2"]
