"""Networks to trace and to cut, and the comparison of their stages with the whole network."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from dglpipe.config import CnnConfig, ResnetCifarConfig, ResnetConfig, VggConfig
from dglpipe.errors import ConfigError
from dglpipe.models import build_network
from dglpipe.partition.segments import trace
from dglpipe.partition.split import cut

torch.set_num_threads(1)


EXACT = {
    "cnn4": (CnnConfig(name="cnn4", width=4, dropout=0.2), 16),
    "cnn6": (CnnConfig(name="cnn6", width=4, dropout=0.2), 16),
    "vgg11_bn": (VggConfig(name="vgg11_bn"), 32),
    "resnet18": (ResnetConfig(name="resnet18"), 32),
    "resnet50": (ResnetConfig(name="resnet50"), 32),
    "resnet20_cifar": (ResnetCifarConfig(name="resnet20_cifar"), 16),
}


def on_meta(config, size):
    with torch.device("meta"):
        return build_network(config, 3, 10, size)


@functools.cache
def real(name):
    """A network with weights; a narrower classifier of VGG saves 0.5 GB."""
    config, size = EXACT[name]
    network = on_meta(config, size)
    if name.startswith("vgg"):
        network.classifier[0] = nn.Linear(512 * 49, 16)
        network.classifier[3] = nn.Linear(16, 16)
        network.classifier[6] = nn.Linear(16, 10)
    network.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network, trace(network)


def run(stages, batch):
    """Runs the stages in order; no stage may modify its input."""
    torch.manual_seed(1)
    for stage in stages:
        handed, before = batch, batch.clone()
        batch = stage(handed)
        assert torch.equal(handed, before)
    return batch


def whole(network, batch):
    torch.manual_seed(1)
    return network(batch)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_equal_gradients(network, parts, images):
    """Asserts that the stages `parts` give the gradients of `network`; returns these by name."""
    weights = {"images": images, **dict(network.named_parameters())}
    grads = []
    for output in (whole(network, images), run(parts, images)):
        for one in weights.values():
            one.grad = None
        output.sum().backward()
        grads.append({name: one.grad for name, one in weights.items() if one.grad is not None})
    assert same(*grads)
    return grads[0]


def assert_partition(network, parts):
    keys = [key for part in parts for key in part.state_dict()]
    assert sorted(keys) == sorted(network.state_dict())
    shared = {key: value for part in parts for key, value in part.state_dict().items()}
    assert same(shared, dict(network.state_dict()))


def conv(channels=3):
    return nn.Conv2d(channels, 3, 1)


class Net(nn.Module):
    """A network from its modules and a function (network, batch) -> output."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, batch, mask=None):
        if mask is not None:
            batch = batch * mask
        return self._forward(self, batch)


def names_of(network):
    return [segment.name for segment in trace(network).segments]


def check_exact(network, shape=(2, 3, 4, 4)):
    """Asserts that `network`, cut at every boundary, gives the same; returns the stages."""
    traced = trace(network)
    parts = cut(traced, range(len(traced.segments)))
    images = torch.randn(*shape)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        assert torch.equal(run(parts, images), whole(network, images))
    assert_partition(network, parts)
    return parts


class Arithmetic(nn.Module):
    """Parameters, buffers and constants outside of torch.nn modules; some never used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = conv(), conv(), conv()
        self.again = self.a
        self.scale = nn.Parameter(torch.rand(3, 1, 1))
        self.alone = nn.Parameter(torch.rand(2))
        self.register_buffer("saved", torch.rand(3, 1, 1))
        self.register_buffer("table", torch.rand(3, 1, 1), persistent=False)
        self.plain = torch.rand(3, 1, 1)

    def forward(self, batch):
        batch = self.a(batch) * self.saved + self.table
        batch = batch * self.scale.exp() + self.table
        return self.b(batch) + self.plain + torch.arange(4.0)


def error(call, key):
    with pytest.raises(ConfigError) as caught:
        call()
    assert caught.value.key == key
    return str(caught.value)


def branching(net, x):
    if x.sum() > 0:
        return net.a(x)
    return x


class Block(Net):
    """A block that occurs several times in a network."""


def moody(net, x):
    """Has one more operation in training than in evaluation."""
    x = net.a(x)
    return x * torch.rand(len(x), 1, 1, 1) if net.training else x
