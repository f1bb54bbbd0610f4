"""`dglpipe.split`, and cuts of networks that are difficult to trace."""

from __future__ import annotations

import re

import numpy
import pytest
import torch
from torch import nn

import dglpipe
from dglpipe.errors import ConfigError
from dglpipe.runtime.open_data import open_images
from harness.configs import build_stages, layout, make_config
from harness.training import train_world


class Chooses(nn.Module):
    """Reads the values of its input."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, batch):
        output = self.convolution(batch)
        return torch.relu(output) if float(batch.detach().abs().sum()) > 0 else output


def choosing_network():
    end = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 1), Chooses(), Chooses(), end)


class Keywords(nn.Module):
    """Calls functions by the names of their arguments."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, batch):
        batch, norm = self.first(batch), self.norm
        batch = nn.functional.batch_norm(
            input=batch,
            running_mean=norm.running_mean,
            running_var=norm.running_var,
            weight=norm.weight,
        )
        batch = self.second(batch).mean(dim=(2, 3))
        return nn.functional.linear(batch, weight=self.last.weight, bias=self.last.bias)


class Twice(nn.Module):
    """Runs one layer two times."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(256, 10)

    def forward(self, batch):
        batch = self.again(torch.relu(self.again(self.first(batch))))
        return self.last(batch.flatten(1))


def assert_same(network, parts, batch):
    for training in (True, False):
        network.train(training)
        expected, output = network(batch), batch
        for part in parts:
            output = part.train(training)(output)
        assert torch.equal(output, expected)


@pytest.mark.parametrize("build", [choosing_network, Keywords, Twice])
def test_parts_are_the_network(build):
    network = build()
    batch = torch.randn(5, 1, 8, 8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    parts = dglpipe.split(network, 2, (1, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert_same(network, parts, batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_types(dtype):
    network = Twice().to(dtype)
    parts = dglpipe.split(network, 2, (1, 8, 8))
    assert_same(network, parts, torch.randn(5, 1, 8, 8, dtype=dtype))


class Sized(Twice):
    """Reads sizes first and uses them last."""

    def forward(self, batch):
        b, _, h, w = batch.shape
        batch = self.again(torch.relu(self.again(self.first(batch))))
        return self.last(batch.reshape(b, 4 * h * w))


def test_sizes_that_forbid_a_cut_are_named():
    with pytest.raises(ConfigError, match=r"^stages: got 2.* b, _, h, w = batch.shape \(.*py:"):
        dglpipe.split(Sized(), 2, (1, 8, 8))
    config = make_config("model=custom", "max_steps=3")
    config.model.target, config.model.args = f"{__name__}:Sized", {}
    with pytest.raises(ConfigError, match=r"^pipeline.stages: got 2.* b, _, h, w = batch.shape"):
        build_stages(config, open_images(config).info, 2, meta=True)


def test_a_network_that_reads_values_is_built_with_weights():
    overrides = ("model=custom", "max_steps=3", "pipeline.split=[2]")
    config = make_config(*overrides)
    config.model.target = f"{__name__}:choosing_network"
    config.model.args = {}
    spec = build_stages(config, open_images(config).info, 2, meta=True)
    spec.check_outputs()
    assert [spec.flops(j) > 0 for j in range(2)] == [True, True]
    run = train_world(config, layout(2))
    assert run.hashes == train_world(config, layout(2, 1)).hashes
    config.pipeline.split, config.pipeline.memory_limit = "auto", "1GiB"
    assert (
        len(build_stages(config, open_images(config).info, 2, meta=True, rows=8).spec.bounds) == 2
    )


def test_no_cut_divides_a_tensor():
    network = Twice()
    parts = dglpipe.split(network, 2, (1, 8, 8))
    assert [sorted(part.state_dict()) for part in parts] == [
        ["first.bias", "first.weight"],
        ["again.bias", "again.weight", "last.bias", "last.weight"],
    ]
    with pytest.raises(ConfigError, match=r"^stages: got 3; allowed: at most 2, because"):
        dglpipe.split(network, 3, (1, 8, 8))
    with pytest.raises(ConfigError, match=r"^at: .*all uses of again.weight in one stage"):
        dglpipe.split(network, 2, (1, 8, 8), at=[2])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((4, (1, 8, 8)), "^stages: got 4; allowed: 1 to"),
        ((2, (3, 8, 8)), "^network: got 'images of 3 channels'"),
        ((2, (1, 5, 5)), r"^input_shape: got \(1, 5, 5\); allowed: images that segment 2"),
        ((2, (1, 5, 9)), r"^input_shape: got \(1, 5, 9\)"),
        ((2, ()), r"^input_shape: got \(\); allowed: whole numbers from 1"),
        ((2, 8), "^input_shape: got 8"),
        ((2, (1, 8, 0)), "^input_shape: got"),
        ((2, (1, 8, 8.0)), "^input_shape: got"),
        (("2", (1, 8, 8)), "^stages: got '2'; allowed: a whole number"),
        ((2.0, (1, 8, 8)), "^stages: got"),
        ((True, (1, 8, 8)), "^stages: got"),
        ((2, (1, 8, 8), [0]), "^at: got"),
        ((2, (1, 8, 8), [1.5]), r"^at: got \[1.5\]; allowed: None, or whole numbers"),
        ((2, (1, 8, 8), "even"), "^at: got 'even'"),
        ((2, (1, 8, 8), [2]), "^at: got .*; allowed: cuts that leave"),
    ],
)
def test_errors_name_the_arguments_of_the_function(arguments, text):
    with pytest.raises(ConfigError, match=text) as caught:
        dglpipe.split(Twice(), *arguments)
    assert not re.search(r"data\.|model\.|pipeline\.|auto", str(caught.value))


def test_split_requires_a_module():
    with pytest.raises(ConfigError, match=r"^network: got 'list'; allowed: a torch\.nn\.Module"):
        dglpipe.split([Twice()], 2, (1, 8, 8))


def test_numbers_of_numpy_are_accepted():
    parts = dglpipe.split(Twice(), numpy.int64(2), numpy.array([1, 8, 8]), numpy.array([1]))
    assert len(parts) == 2
    dense = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    assert len(dglpipe.split(dense, 2, (6,))) == 2


def test_small_images_for_a_vision_transformer():
    config = make_config("model=torchvision", "data=synthetic", "data.image_size=32")
    config.model.name = "vit_b_16"
    data = open_images(config).info
    with pytest.raises(ConfigError, match=r"Expected 224 but got another.*model\.args"):
        build_stages(config, data, 2, meta=True)
    config.model.args = {"image_size": 32}
    assert len(build_stages(config, data, 2, meta=True).spec.bounds) == 2
