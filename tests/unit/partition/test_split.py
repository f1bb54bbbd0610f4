"""Stages compute what the network computes; the boundaries between them.

stage 0      stage 1      stage 2
0  1         2  3         4  5           6 segments in 3 stages, "even"
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dglpipe.partition.segments import trace
from dglpipe.partition.split import boundaries, cut, even_boundaries
from unit.partition.networks import (
    EXACT,
    Arithmetic,
    Block,
    Net,
    assert_partition,
    branching,
    conv,
    error,
    moody,
    real,
    run,
    same,
    whole,
)


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", EXACT)
def test_stages_are_the_network_bit_for_bit(name, stages):
    network, traced = real(name)
    size = EXACT[name][1]
    parts = cut(traced, even_boundaries(len(traced.segments), stages))
    for training, rows in ((True, 3), (True, 2), (False, 2)):
        for module in (network, *parts):
            module.train(training)
        images = torch.randn(rows, 3, size, size)
        start = copy.deepcopy(dict(network.named_buffers()))
        with torch.no_grad():
            expected = whole(network, images)
            end = copy.deepcopy(dict(network.named_buffers()))
            network.load_state_dict(start, strict=False)
            assert torch.equal(run(parts, images), expected)
        assert same(dict(network.named_buffers()), end)
        assert same(start, end) != training


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", EXACT)
def test_every_key_lies_in_exactly_one_stage(name, stages):
    network, traced = real(name)
    parts = cut(traced, even_boundaries(len(traced.segments), stages))
    assert_partition(network, parts)
    own = {id(weights) for part in parts for weights in part.parameters()}
    assert own == {id(weights) for weights in network.parameters()}


def test_gradients_are_the_networks():
    network, traced = real("resnet20_cifar")
    parts = [part.eval() for part in cut(traced, [0, 3, 7])]
    images = torch.randn(2, 3, 16, 16)
    network.eval()
    grads = []
    for output in (whole(network, images), run(parts, images)):
        network.zero_grad()
        output.sum().backward()
        grads.append({name: weights.grad for name, weights in network.named_parameters()})
    assert same(*grads)


def test_stages_can_be_copied_and_trained():
    stage = cut(trace(Arithmetic()), [0, 1])[1]
    twin = copy.deepcopy(stage)
    batch = torch.randn(2, 3, 4, 4)
    assert torch.equal(twin(batch), stage(batch))
    assert twin.state_dict().keys() == stage.state_dict().keys()
    with torch.no_grad():
        twin.b.weight.zero_()
    assert not torch.equal(twin(batch), stage(batch))


def test_a_module_that_is_replaced_in_a_stage_is_used():
    stage = cut(trace(nn.Sequential(conv(), conv())), [0, 1])[0]
    stage.add_module("0", nn.Identity())
    batch = torch.randn(2, 3, 4, 4)
    assert torch.equal(stage(batch), batch)


@pytest.mark.parametrize("forward", [branching, moody])
def test_boundaries_by_hand(forward):
    """The parts of a Sequential may be any modules of any size."""
    large = Block(forward, a=conv(), b=conv(), c=conv())
    network = nn.Sequential(conv(), large, conv())
    traced = trace(network)
    assert [segment.name for segment in traced.segments] == ["0", "1", "2"]
    parts = cut(traced, [0, 1, 2])
    images = torch.randn(2, 3, 4, 4)
    expected = whole(network, images)
    assert torch.equal(run(parts, images), expected)
    assert sorted(key for part in parts for key in part.state_dict()) == sorted(
        network.state_dict()
    )


def test_tied_weights_in_two_stages_are_refused():
    network = nn.Sequential(conv(), conv(), conv())
    network[2].weight = network[0].weight
    traced = trace(network)
    text = error(lambda: cut(traced, [0, 1]), "pipeline.split")
    assert "got 'stages that begin at segments [0, 1]'" in text
    assert "0.weight and 2.weight, which are the same tensor, in one stage" in text
    assert "stages 0 and 1 would each train their own copy" in text


def test_tied_weights_in_one_stage_are_fine():
    network = nn.Sequential(conv(), conv(), conv())
    network[2].weight = network[1].weight
    assert_partition(network, cut(trace(network), [0, 1]))


class Remembering(Net):
    def get_extra_state(self):
        return 3

    def set_extra_state(self, state):
        pass


def test_state_that_no_stage_can_hold_is_refused():
    network = nn.Sequential(Remembering(lambda net, x: net.a(x), a=conv()), conv())
    text = error(lambda: cut(trace(network), [0, 1]), "model")
    assert "got '0._extra_state'; allowed: state in parameters and buffers only" in text


@given(st.integers(1, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_even_sizes_differ_by_at_most_one_larger_first(segments, data):
    stages = data.draw(st.integers(1, segments))
    firsts = even_boundaries(segments, stages)
    ends = [*firsts[1:], segments]
    sizes = [end - first for first, end in zip(firsts, ends, strict=True)]
    assert firsts[0] == 0
    assert len(sizes) == stages
    assert sum(sizes) == segments
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_boundaries():
    assert even_boundaries(10, 4) == [0, 3, 6, 8]
    assert boundaries("even", 6, 3) == [0, 2, 4]
    assert boundaries([1, 4], 6, 3) == [0, 1, 4]
    assert boundaries([], 6, 1) == [0]


@pytest.mark.parametrize(
    ("split", "stages", "key", "words"),
    [
        ("even", 4, "stages", "got 4; allowed: 1 to 3, the number of segments of this network"),
        ("even", 0, "stages", "got 0; allowed: 1 to 3"),
        ("auto", 2, "split", "got 'auto'; allowed: even, or a list"),
        ([1], 3, "split", "got [1]; allowed: 2 numbers for 3 stages"),
        ([2, 1], 3, "split", "got [2, 1]; allowed: increasing numbers"),
        ([1, 1], 3, "split", "got [1, 1]; allowed: increasing numbers: every stage has a segment"),
        ([1, 3], 3, "split", "got [1, 3]; allowed: numbers from 1 to 2"),
        ([0, 1], 3, "split", "got [0, 1]; allowed: numbers from 1 to 2"),
    ],
)
def test_boundaries_that_do_not_fit_are_refused(split, stages, key, words):
    names = ["stem", "one", "two"]
    text = error(lambda: boundaries(split, 3, stages, names), f"pipeline.{key}")
    assert words in text
    assert ("Segments: 0 stem, 1 one, 2 two" in text) == (split != "auto")
    error(lambda: boundaries(split, 3, stages), f"pipeline.{key}")
