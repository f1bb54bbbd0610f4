"""Channels of the images of a run, and loaders of a machine."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torchvision.io import write_png

from dglpipe.config import ImageFolderConfig
from dglpipe.data import Request
from dglpipe.errors import DataError
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.worker import _loaders
from harness.configs import make_config


def three_channels():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 10))


def two_channels():
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(72, 10))


def no_convolution():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("target", "channels"),
    [
        ("harness.plug_ins:plain_network", 1),  # asks for `channels`
        (f"{__name__}:three_channels", 3),
        (f"{__name__}:two_channels", 2),
        (f"{__name__}:no_convolution", 1),
        ("torchvision.models:resnet18", 3),
    ],
)
def test_gray_images_get_what_a_custom_network_wants(target, channels):
    config = make_config("model=custom")
    config.model.target, config.model.args = target, {}
    source = open_images(config)
    assert source.info.channels == channels
    images, _ = next(source.load().batches([Request(True, 1, torch.arange(2))]))
    assert images.shape[1] == channels


def test_gray_images_become_colour_ones_for_a_named_network():
    assert open_images(make_config("model=resnet18")).info.channels == 3


def test_gray_images_stay_gray_for_any_other():
    assert open_images(make_config()).info.channels == 1


def test_colour_does_not_become_another_number():
    config = make_config("model=resnet18", "data=synthetic", "data.channels=2")
    with pytest.raises(DataError, match="2 channels, the network requires 3"):
        _ = open_images(config).info


@pytest.mark.parametrize(("environment", "workers"), [({}, 4), ({"LOCAL_WORLD_SIZE": "2"}, 8)])
def test_replicas_of_one_machine_share_its_decoders(environment, workers, tmp_path, monkeypatch):
    """Two chains of two processes, on one machine and on two."""
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / folder).mkdir(parents=True)
        write_png(torch.zeros(3, 8, 8, dtype=torch.uint8), f"{tmp_path}/{folder}/0.png")
    for key in ("LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    for key, value in {**environment, **({"LOCAL_RANK": "0"} if environment else {})}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    config = make_config()
    config.data = ImageFolderConfig(root=str(tmp_path), memory_limit_mb=0)
    loaders = _loaders(Layout(2, 2, 2, 1).at(2))
    source = open_images(config, loaders)
    assert source.load().workers == workers
    assert source.timeout_s == config.timeout_s == 30
