"""Operations in place stay in place, and no cut lies in front of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unit.partition.networks import (
    Net,
    check_exact,
    conv,
    names_of,
)


@pytest.mark.parametrize(
    "alter",
    [
        lambda net, x: net.relu(x),
        lambda net, x: F.relu(x, inplace=True),
        lambda net, x: torch.relu_(x),
        lambda net, x: x.relu_(),
        lambda net, x: torch.exp(x, out=x),
        lambda net, x: x.flatten(2).relu_(),
        lambda net, x: net.nothing(x).clamp_(0.1),
        lambda net, x: F.dropout(x, 0.0).relu_(),
    ],
)
def test_no_cut_in_front_of_an_operation_in_place(alter):
    def forward(net, x):
        x = net.a(x)
        y = net.b(x)
        return y.sum() + alter(net, x)

    modules = {"relu": nn.ReLU(inplace=True), "nothing": nn.Dropout()}
    network = Net(forward, a=conv(), b=conv(), **modules)
    assert names_of(network) == ["a"]
    harmless = Net(
        lambda net, x: F.relu(net.b(net.a(x)) * 2, inplace=True), a=conv(), b=conv(), **modules
    )
    assert names_of(harmless) == ["a", "b"]


def on_a_view(net, x):
    y = net.a(x)
    flat = y.flatten(1)
    flat += 1
    flat *= 2
    return net.b(y)


def under_another_name(net, x):
    x = net.a(x)
    same = x
    x -= 3
    x /= 2
    return net.b(x + same)


def of_another_type(net, x):
    x = net.a(x).bfloat16()
    x += torch.full((3, 1, 1), 0.3)
    return net.b(x.float())


def of_a_number(net, x):
    b = half = x.shape[0]
    half += 1
    return net.b(net.a(x).reshape(b, 3, 4, 4)) + half


@pytest.mark.parametrize("forward", [on_a_view, under_another_name, of_another_type, of_a_number])
def test_arithmetic_in_place_stays_in_place(forward):
    """Aliases read later see the change, and the dtype stays that of the tensor."""
    torch.manual_seed(0)
    network = Net(forward, a=conv(), b=conv())
    check_exact(network)


def test_no_cut_before_in_place_arithmetic():
    def forward(net, x):
        x = net.a(x)
        y = net.b(x)
        x += y
        return net.c(x)

    assert names_of(Net(forward, a=conv(), b=conv(), c=conv())) == ["a", "c"]
