"""Sizes that a network reads from its tensors: the batch dimension is read again after a cut."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import nn

from dglpipe.partition.segments import trace
from dglpipe.partition.shape_prop import propagate_shapes
from dglpipe.partition.split import check_stages
from unit.partition.networks import (
    Net,
    check_exact,
    conv,
    error,
    names_of,
)


def reads_rows(net, x):
    b = x.shape[0]
    return net.d(net.c(net.b(net.a(x))).reshape(b, -1))


def unpacks_a_shape(net, x):
    b, c, _, _ = x.shape
    x = net.b(net.a(x)) * c
    return net.d(net.c(x + x).view(b, -1))


def takes_part_of_a_shape(net, x):
    rows = x.size()[:2][0] * 4
    x = F.relu(net.c(net.b(net.a(x))))
    return net.d(x.permute(0, 2, 3, 1).reshape(rows, -1).reshape(-1, 48))


def reads_rows_between(net, x):
    x = net.norm(net.a(x))
    b = x.size(0)
    return net.d(net.c(net.b(x).flatten(2).transpose(1, 2).reshape(b, 3, 4, 4)).reshape(b, -1))


@pytest.mark.parametrize(
    ("forward", "segments"),
    [(reads_rows, 3), (takes_part_of_a_shape, 3), (reads_rows_between, 3), (unpacks_a_shape, 2)],
)
def test_the_number_of_rows_is_read_again_after_a_cut(forward, segments):
    layers = {"a": conv(), "b": conv(), "c": conv(), "d": nn.Linear(48, 5)}
    network = Net(forward, norm=nn.BatchNorm2d(3), **layers)
    assert len(names_of(network)) == segments
    for rows in (1, 2, 5):
        check_exact(network, (rows, 3, 4, 4))
    assert len(propagate_shapes(trace(network), (2, 3, 4, 4))) == segments


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.flatten(0, 1).view(3, -1, 4, 4),
        lambda x: x.mean(0, keepdim=True),
        lambda x: x[:1],
    ],
)
def test_rows_are_not_read_from_a_tensor_that_may_have_others(turn):
    def forward(net, x):
        b = x.shape[0]
        x = net.c(turn(net.a(x)) * 2)
        return x.new_ones(b, 5)

    network = Net(forward, a=conv(), c=nn.Conv1d(4, 4, 1))
    assert names_of(network) == ["a"]


def test_sizes_that_prevent_a_cut_are_named():
    def forward(net, x):
        _, _, h, w = x.shape
        return F.interpolate(net.c(net.b(net.a(x))), (h, w))

    network = Net(forward, a=conv(), b=conv(), c=conv())
    text = error(lambda: check_stages(trace(network), 2), "pipeline.stages")
    assert "got 2; allowed: 1 to 1, the number of segments of this network" in text
    assert "read before a cut and used after it prevent more cuts: _, _, h, w = x.shape (" in text
    assert text.endswith("). Read a size where it is used")
    plain = error(lambda: check_stages(trace(nn.Sequential(conv())), 2), "pipeline.stages")
    assert "sizes" not in plain
