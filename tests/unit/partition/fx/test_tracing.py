"""Tracing in training and in evaluation: outputs, differences, blocks that cannot be traced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dglpipe.partition.segments import trace
from dglpipe.partition.split import cut
from unit.partition.networks import (
    Arithmetic,
    Block,
    Net,
    assert_partition,
    branching,
    check_exact,
    conv,
    error,
    moody,
    names_of,
    run,
    whole,
)


def test_tracing_leaves_the_network_as_it_was():
    network = Arithmetic().eval()
    network.a.train()
    keys = list(network.state_dict())
    random = torch.get_rng_state()
    first, second = names_of(network), names_of(network)
    assert first == second
    assert [network.training, network.a.training, network.b.training] == [False, True, False]
    assert list(network.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), random)


def test_functional_dropout_follows_the_mode_of_the_stage():
    block = Net(lambda net, x: F.dropout(net.a(x), 0.5, net.training), a=conv())
    (first, second) = check_exact(nn.Sequential(block, conv()))
    images = torch.randn(2, 3, 4, 4)
    assert not torch.equal(first.train()(images), first.eval()(images))
    assert second.state_dict().keys() == {"1.weight", "1.bias"}


def with_auxiliary(net, x):
    x = net.a(x)
    if net.training:
        auxiliary = F.relu(net.aux(x.mean(dim=(2, 3))), inplace=True)
        return {"logits": net.b(x), "auxiliary": auxiliary}
    return net.b(x)


def test_the_first_of_several_outputs_is_the_logits():
    """Operations of the other outputs are not run, but their weights stay."""
    network = Net(with_auxiliary, a=conv(), b=conv(), aux=nn.Linear(3, 3))
    parts = cut(trace(network), [0, 1])
    images = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        expected = whole(network, images)
        expected = expected["logits"] if training else expected
        assert torch.equal(run(parts, images), expected)
    assert_partition(network, parts)
    assert not any(node.target == "aux" for part in parts for node in part.graph.nodes)


def test_an_entry_that_is_not_computed_is_no_logits():
    """`loss` is None without labels."""
    network = Net(lambda net, x: {"loss": None, "out": (1, net.b(net.a(x)))}, a=conv(), b=conv())
    first, second = cut(trace(network), [0, 1])
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(second(first(images)), network(images)["out"][1])


def test_in_place_operations_of_other_outputs_on_the_logits_are_kept():
    def forward(net, x):
        x = net.a(x)
        other = x
        other += 1
        return net.b(x), other

    network = Net(forward, a=conv(), b=conv())
    (part,) = cut(trace(network), [0])
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(part(images), network(images)[0])


@pytest.mark.parametrize("output", [None, {"loss": None}, (), 3])
def test_a_network_without_an_output_is_refused(output):
    network = Net(lambda net, x: (net.a(x), output)[1], a=conv())
    text = error(lambda: trace(network), "model")
    assert "got 'Net, which returns no tensor'; allowed: a network that returns its logits" in text


def test_an_operation_only_in_training_is_refused():
    block = Net(lambda net, x: net.a(x).exp() if net.training else net.a(x), a=conv())
    assert "got 'exp'" in error(lambda: trace(block), "model")


def test_a_constant_that_depends_on_the_mode_is_refused():
    block = Net(lambda net, x: net.a(x) * torch.tensor([1.0 + net.training]), a=conv())
    assert "got '_tensor_constant0'" in error(lambda: trace(block), "model")


@pytest.mark.parametrize("forward", [branching, moody])
def test_a_block_that_cannot_be_traced_is_one_operation(forward):
    blocks = {name: Block(forward, a=conv()) for name in ("b", "c")}
    network = Net(lambda net, x: net.d(net.c(net.b(net.a(x)))), a=conv(), **blocks, d=conv())
    traced = trace(network)
    assert [segment.name for segment in traced.segments] == ["a", "b", "c", "d"]
    parts = cut(traced, [0, 1, 2, 3])
    assert_partition(network, parts)
    images = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        for module in (network, *parts):
            module.train(training)
        torch.manual_seed(1)
        expected = network(images)
        torch.manual_seed(1)
        assert torch.equal(run(parts, images), expected)


def test_half_a_network_is_no_operation():
    block = Block(branching, a=conv(), b=conv())
    network = Net(lambda net, x: net.b(net.a(x)), a=conv(), b=block)
    assert "Net: if x.sum() > 0: (" in error(lambda: trace(network), "model")


def test_a_decision_on_values_is_refused():
    network = Net(branching, a=conv()).eval()
    text = error(lambda: trace(network), "model")
    assert "Net: if x.sum() > 0: (" in text
    assert "networks.py:" in text
    assert "boundaries by hand: a builder (model=custom) of an nn.Sequential" in text
    assert "TraceError: symbolically traced variables" in text
    assert not network.training
