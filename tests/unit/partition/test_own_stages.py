"""Stages that are built without the weights of the others, and fields recorded without weights."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dglpipe.methods import build_run_method
from dglpipe.models.meta import building
from dglpipe.models.partial import PartialBuildError, building_stored, recording
from dglpipe.partition import own_stages, staged_network
from dglpipe.partition.own_stages import build_own_stages
from dglpipe.pipeline.weights import named_tensors
from dglpipe.runtime.open_data import open_images
from harness.configs import build_stages, in_test_all, make_config

TORCHVISION = ("model=torchvision", "data.image_size=32")
NETWORKS = {
    "cnn4": ("model=cnn4",),
    "cnn6": ("model=cnn6", "model.dropout=0.1"),
    "vgg11_bn": ("model=vgg11_bn", "data.image_size=32"),
    "resnet18": ("model=resnet18", "data.image_size=32"),
    "resnet20_cifar": ("model=resnet20_cifar",),
    "vit_b_16": (*TORCHVISION, "model.name=vit_b_16", "model.args={image_size:32}"),
    "mobilenet": (*TORCHVISION, "model.name=mobilenet_v3_small"),
    "plug_in": ("model=custom", "model.target=harness.plug_ins:residual_network"),
    "tied": ("model=custom", f"model.target={__name__}:tied_network"),
    "clones": ("model=custom", f"model.target={__name__}:network_of_clones"),
}


class Tied(nn.Module):
    """The second and the third layer share a weight, so no cut between them is possible."""

    def __init__(self, channels, classes):
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.third.weight = self.second.weight
        self.fourth = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(256, classes)

    def forward(self, batch):
        batch = self.third(torch.relu(self.second(self.first(batch))))
        return self.last(self.fourth(batch).flatten(1))


def tied_network(channels, classes):
    return Tied(channels, classes)


def network_of_clones(channels, classes):
    """Copies of a layer that is not part of the network, as in `nn.TransformerEncoder`."""
    layer = nn.Conv2d(4, 4, 3, padding=1)
    body = [copy.deepcopy(layer) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), *body, nn.Flatten(), nn.Linear(256, classes)
    )


def scaled_network(channels, classes):
    """The scale of its last layer depends on the weights of its first."""
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
    with torch.no_grad():
        network[3].weight.mul_(network[0].weight.std())
    return network


LARGE = ("resnet20_cifar", "vgg11_bn", "vit_b_16", "mobilenet")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS]
"""Networks whose whole build takes seconds are for `make test-all`."""


def stages_of(words, count):
    """(config, data, method, spec from meta, network built as a whole)"""
    config = make_config(*words, "pipeline.split=auto")
    data = open_images(config).info
    spec = build_stages(config, data, count, meta=True).spec
    config.pipeline.split = list(spec.bounds[1:])
    method = build_run_method(config, count, data)
    return config, data, method, spec, build_stages(config, data, count)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*NAMES, "scaled"])
def test_the_spec_of_a_network_on_meta_equals_the_real_spec(name, precision, monkeypatch):
    words = NETWORKS.get(name) or ("model=custom", f"model.target={__name__}:scaled_network")
    whole = staged_network._trace_network

    def on_meta(*args, meta):
        assert meta or name == "scaled", "fields are recorded without weights"
        return whole(*args, meta=meta)

    config = make_config(*words, "pipeline.split=auto", f"precision={precision}")
    data = open_images(config).info
    with monkeypatch.context() as patch:
        patch.setattr(staged_network, "_trace_network", on_meta)
        spec = build_stages(config, data, 2, meta=True).spec
    config.pipeline.split = list(spec.bounds[1:])
    assert spec == build_stages(config, data, 2).spec


@pytest.mark.parametrize("count", [in_test_all(2), 3, in_test_all(6)])
@pytest.mark.parametrize("name", NAMES)
def test_own_stages_have_the_weights_of_the_whole_network(name, count, monkeypatch):
    if (name, count) in (("tied", 6), ("clones", 6), ("cnn4", 6), ("tied", 3)):
        pytest.skip("it has fewer segments")
    config, data, method, spec, network = stages_of(NETWORKS[name], count)
    if name != "clones":  # copies a layer after the weights of another layer were drawn
        monkeypatch.setattr(own_stages, "_build_whole", None)
    large = name in ("vit_b_16", "vgg11_bn")
    for j in (0, 3, 5) if large and count == 6 else range(count):
        (own,) = build_own_stages(config, method, data, spec, [j]).values()
        assert_equal(own, network.learner(j))


def assert_equal(own, expected):
    found, wanted = named_tensors(own), named_tensors(expected)
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    strides = [[one.stride() for one in stage.parameters()] for stage in (own, expected)]
    assert strides[0] == strides[1]


def test_a_network_that_reads_its_weights_is_built_as_a_whole(monkeypatch):
    words = ("model=custom", f"model.target={__name__}:scaled_network")
    config, data, method, spec, network = stages_of(words, 2)
    whole, calls = own_stages._build_whole, []
    monkeypatch.setattr(own_stages, "_build_whole", lambda *args: calls.append(1) or whole(*args))
    for j in range(2):
        assert_equal(build_own_stages(config, method, data, spec, [j])[j], network.learner(j))
    assert calls


def test_weights_from_a_file_are_loaded_into_own_stages(tmp_path):
    config, data, method, spec, network = stages_of(NETWORKS["cnn6"], 3)
    state = {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for module in network.modules
        for key, value in module.state_dict().items()
    }
    torch.save(state, tmp_path / "weights.pt")
    config.model.weights = str(tmp_path / "weights.pt")
    own = build_own_stages(config, method, data, spec, [1])[1]
    own_state = own.segments.state_dict()
    assert own_state and all(torch.equal(value, state[key]) for key, value in own_state.items())


def build_odd():
    """Fills of many kinds; some depend on values."""
    first, second = nn.Linear(3, 4), nn.Linear(4, 5)
    nn.init.trunc_normal_(first.weight, a=-0.1, b=0.1)
    nn.init.orthogonal_(first.weight)
    first.weight.data[1:].normal_()
    with torch.no_grad():
        first.bias.uniform_().mul_(2).add_(torch.rand(4))
    if not second.weight.is_meta and second.weight.device.type == "cpu":
        nn.init.xavier_normal_(second.weight)
    nn.init.trunc_normal_(second.bias)
    return nn.Sequential(first, second)


@pytest.mark.parametrize("stored", [(1, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 0)])
def test_random_draws_into_parameters_that_are_not_stored(stored):
    with building(False, 3):
        expected = list(build_odd().parameters())
        after = torch.rand(3)
    with recording(3) as found:
        build_odd()
    with building_stored(3, found.kinds, [*map(bool, stored)]):
        network = build_odd()
        assert torch.equal(torch.rand(3), after)
    for one, other, is_real in zip(network.parameters(), expected, stored, strict=True):
        assert one.is_meta != bool(is_real)
        assert one.is_meta or torch.equal(one, other)


def test_values_that_were_dropped_cannot_be_read():
    def build():
        first, second = nn.Linear(3, 3), nn.Linear(3, 3)
        with torch.no_grad():
            second.weight.copy_(first.weight)
        return nn.Sequential(first, second)

    with recording(0) as found:
        build()
    stored = building_stored(0, found.kinds, [False, False, True, True])
    with pytest.raises(PartialBuildError, match="were dropped"), stored:
        build()


def test_another_network_cannot_be_built_in_part():
    with recording(0) as found:
        nn.Linear(3, 3)
    stored = building_stored(0, found.kinds, [True, True])
    with pytest.raises(PartialBuildError, match="another parameter"), stored:
        nn.Linear(3, 4)
    stored = building_stored(0, found.kinds, [True, True])
    with pytest.raises(PartialBuildError, match="fewer"), stored:
        nn.Linear(3, 3, bias=False)


PEAK = """
import json, sys
import torch, torchvision.models
from harness.configs import build_stages, make_config
from dglpipe.host import peak_resident_bytes
from dglpipe.partition.own_stages import build_own_stages
from dglpipe.methods import build_run_method
from dglpipe.runtime.open_data import open_images

config = make_config("model=resnet152", "data.image_size=32", "head=linear", "pipeline.split=even")
data = open_images(config).info
spec = build_stages(config, data, 4, meta=True).spec
before = peak_resident_bytes()
own = range(4) if sys.argv[1] == "all" else [int(sys.argv[1])]
stages = build_own_stages(config, build_run_method(config, 4, data), data, spec, own)
weights = sum(one.nbytes for stage in stages.values() for one in stage.parameters())
print(json.dumps([peak_resident_bytes() - before, weights]))
"""


def peak_of(own):
    path = ":".join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    words = [sys.executable, "-W", "ignore", "-c", PEAK, own]
    out = subprocess.run(words, env={"PYTHONPATH": path}, capture_output=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_process_holds_its_own_stages():
    """resnet152 in 4 stages: the weights of the other stages are not in memory."""
    whole, weights = peak_of("all")
    peak, own = peak_of("1")
    assert own < weights / 3
    assert whole - peak > 0.9 * (weights - own)
