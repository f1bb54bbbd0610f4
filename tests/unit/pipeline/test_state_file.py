"""State in safetensors files: every bit and every type comes back."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save

from dglpipe.pipeline.state_file import read_state, snapshot


def through_a_file(state):
    metadata, found = read_state(snapshot(state).to_bytes({"step": "3"}))
    assert metadata == {"step": "3"}
    return found


def test_numbers_texts_and_containers_come_back():
    state = {
        "none": None,
        "whole": [0, -1, 2**70, True, False],
        "floats": (0.1, 1e-320, -0.0, math.inf, math.pi),
        "nested": [{1: {"a/b": [], "a": {}}, None: (), "é": "\n"}],
        1: "number",
        "1": "text",
    }
    found = through_a_file(state)
    assert found == state
    assert [type(one) for one in found["whole"]] == [int, int, int, bool, bool]
    assert math.copysign(1, found["floats"][2]) == -1
    assert math.isnan(through_a_file([math.nan])[0])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last),
        torch.randn(4, 1, 1, 3).to(memory_format=torch.channels_last),
        torch.randn(6, 5).t(),
        torch.randn(8, 6)[::2, 1:4],
        torch.randn(3, 1).expand(3, 4),
        torch.tensor(2.5),
        torch.empty(0, 3),
        torch.arange(7),
        torch.tensor([True, False]),
        torch.randn(9).to(torch.bfloat16),
        torch.tensor([math.nan, math.inf, -0.0], dtype=torch.float64),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}",
)
def test_tensors_come_back_with_bits_and_memory_format(tensor):
    found = through_a_file({"a": [tensor]})["a"][0]
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert found.stride() == tensor.clone().stride()
    flat = [one.contiguous().flatten().view(torch.uint8) for one in (found, tensor)]
    assert torch.equal(*flat)


def test_a_snapshot_does_not_change_with_the_state():
    tensor = torch.zeros(3)
    taken = snapshot({"a": tensor, "b": tensor, "a/x": {}, "list": [tensor[1:]]})
    tensor += 1
    _, found = read_state(taken.to_bytes({}))
    assert all(not one.any() for one in (found["a"], found["b"], found["list"][0]))


def test_keys_that_look_alike_stay_apart():
    zero, one = torch.zeros(1), torch.ones(1)
    found = through_a_file({"a": {"b": zero}, "a/b": one, 1: zero, "1": one})
    assert found["a"]["b"] == found[1] == 0
    assert found["a/b"] == found["1"] == 1


@pytest.mark.parametrize("wrong", [{1, 2}, b"bytes", torch.float32, object(), {(1,): 2}])
def test_other_values_are_refused_with_their_place(wrong):
    with pytest.raises(TypeError, match=r"^state/more/0: got"):
        snapshot({"more": [wrong]})


def test_the_state_of_an_optimizer_comes_back():
    parameters = [torch.nn.Parameter(torch.randn(3, 2, 3, 3).to(memory_format=torch.channels_last))]
    adam = torch.optim.Adam(parameters, fused=True)
    (parameters[0] ** 2).sum().backward()
    adam.step()
    found = through_a_file(adam.state_dict())
    assert found["param_groups"] == adam.state_dict()["param_groups"]
    for key, value in adam.state_dict()["state"][0].items():
        assert torch.equal(found["state"][0][key], value)
        assert found["state"][0][key].stride() == value.stride()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"torn",
        bytes(200),
        save({"a": torch.zeros(1)}),
        save({"a": torch.zeros(1)}, {"tree": "{"}),
        save({"a": torch.zeros(1)}, {"tree": "[1]"}),
        save({"a": torch.zeros(1)}, {"tree": '{"tensor": ["b", [1], [1]]}'}),
        save({"a": torch.zeros(1)}, {"tree": '{"tensor": ["a", [9], [1]]}'}),
        save({"a": torch.zeros(1)}, {"tree": '{"other": []}'}),
    ],
)
def test_a_file_without_a_state_is_refused(content):
    with pytest.raises(ValueError):
        read_state(content)
