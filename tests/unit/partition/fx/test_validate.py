"""Hooks and names that a stage cannot have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.partition.segments import trace
from unit.partition.networks import (
    Net,
    assert_equal_gradients,
    check_exact,
    conv,
    error,
    names_of,
)


def hook(*_):
    """Does nothing."""


@pytest.mark.parametrize(
    ("register", "what"),
    [
        ("register_forward_hook", "forward hook"),
        ("register_forward_pre_hook", "forward pre-hook"),
        ("register_full_backward_hook", "backward hook"),
        ("register_full_backward_pre_hook", "backward pre-hook"),
    ],
)
def test_hooks_on_the_network_itself_are_refused(register, what):
    network = nn.Sequential(conv(), conv())
    getattr(network, register)(hook)
    text = error(lambda: trace(network), "model")
    assert f"got 'Sequential with a {what}, hook'; allowed: hooks on modules inside" in text
    assert names_of(nn.Sequential(network)) != []


def test_hooks_on_modules_inside_are_run():
    network = nn.Sequential(conv(), nn.Sequential(conv(), conv()), conv())
    network[0].register_forward_hook(lambda _module, _args, output: output * 2)
    network[1].register_full_backward_hook(lambda _module, grads, _outputs: (grads[0] * 3,))
    parts = check_exact(network)
    assert_equal_gradients(network, parts, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_a_name_that_a_stage_needs_is_refused(name):
    network = Net(lambda net, x: net.b(getattr(net, name)(x)), **{name: conv(), "b": conv()})
    text = error(lambda: trace(network), "model")
    assert f"got \"Net with a member named '{name}'\"; allowed: names that" in text
    assert text.endswith("rename the member")
    check_exact(nn.Sequential(network, conv()))
