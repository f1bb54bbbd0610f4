"""Gradient modes and autocast inside a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.partition.segments import trace
from dglpipe.partition.split import cut
from unit.partition.networks import (
    Block,
    Net,
    assert_equal_gradients,
    check_exact,
    conv,
    error,
    names_of,
)


class Reversed(torch.autograd.Function):
    """Negates gradients."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def without_gradients(net, x):
    with torch.no_grad():
        return net.a(x) * 1


@torch.no_grad()
def decorated(net, x):
    return net.a(x)


def inferring(net, x):
    with torch.inference_mode():
        x = net.a(x)
    return x.clone()


def in_half_precision(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = net.a(x)
    return x.float()


def without_autocast(net, x):
    with torch.autocast("cpu", enabled=False):
        return net.a(x)


def reversing(net, x):
    return Reversed.apply(net.a(x))


def for_good(net, x):
    torch.set_grad_enabled(False)
    x = net.a(x)
    torch.set_grad_enabled(True)
    return x


MODES = [
    *(without_gradients, decorated, inferring, in_half_precision, without_autocast),
    *(reversing, for_good),
]


@pytest.mark.parametrize("forward", MODES)
def test_a_block_that_enters_a_mode_is_one_operation(forward):
    """Outputs and gradients equal the network's."""
    network = Net(
        lambda net, x: net.c(net.mode(net.b(net.a(x)))),
        **{name: conv() for name in ("a", "b", "c")},
        mode=Block(forward, a=conv()),
    )
    assert "mode" in names_of(network)
    check_exact(network)
    parts = cut(trace(network), range(len(trace(network).segments)))
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    grads = assert_equal_gradients(network, parts, images)
    assert "c.weight" in grads
    assert ("mode.a.weight" in grads) == (
        forward in (in_half_precision, without_autocast, reversing)
    )


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("forward", MODES)
def test_a_mode_that_the_network_enters_is_refused(forward, outside):
    """The mode of the caller may be any mode, and is restored."""
    network = Net(forward, a=nn.Sequential(conv(), conv(), conv()))
    with outside():
        before = torch.is_grad_enabled()
        text = error(lambda: trace(network), "model")
        assert torch.is_grad_enabled() == before
    assert "allowed: a network whose operations all run in the mode in which it is called" in text
    assert "torch.no_grad, torch.inference_mode, torch.autocast and the forward of a torch" in text
    assert "test_grad_modes.py:" in text


def test_a_mode_without_operations_is_no_obstacle():
    def forward(net, x):
        with torch.no_grad():
            steps = torch.arange(4.0) * 2
        return net.b(net.a(x) * steps)

    network = Net(forward, a=conv(), b=conv())
    assert names_of(network) == ["a", "b"]
    check_exact(network)
