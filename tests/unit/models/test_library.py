"""Networks by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dglpipe.models
from dglpipe.config import (
    CnnConfig,
    CustomModelConfig,
    ResnetCifarConfig,
    ResnetConfig,
    TimmConfig,
    VggConfig,
)
from dglpipe.errors import ConfigError
from dglpipe.models import build_network, catalogue, wanted_channels
from harness.paths import ROOT

torch.set_num_threads(1)
THREE = {"hidden_layers": 3}
CONF = ROOT / "conf" / "model"


def build(config, channels=3, classes=7, image_size=32, meta=False):
    with torch.device("meta" if meta else "cpu"):
        return build_network(config, channels, classes, image_size)


def parameters(network):
    return sum(weights.numel() for weights in network.parameters())


def convolutions(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def own_network(channels, classes, image_size, depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes * depth))


def no_network(channels):
    return [channels]


@pytest.mark.parametrize("size", [4, 8, 17, 32])
@pytest.mark.parametrize("name", ["cnn4", "cnn6"])
def test_cnn_takes_any_image(name, size):
    network = build(CnnConfig(name=name, width=4), channels=1, image_size=size)
    assert network(torch.randn(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "widths"), [("cnn4", [4, 8, 8, 16]), ("cnn6", [4, 8, 8, 16, 16, 16])]
)
def test_cnn_widths(name, widths):
    found = convolutions(build(CnnConfig(name=name, width=4)))
    assert [layer.out_channels for layer in found] == widths
    assert all(layer.bias is None and layer.padding == (1, 1) for layer in found)
    own = CnnConfig(name=name, widths=[5] * len(widths))
    assert {layer.out_channels for layer in convolutions(build(own))} == {5}


def sides(network, size):
    """Side of the map after each layer."""
    maps, found = torch.randn(2, 3, size, size), []
    for layer in network.layers:
        maps = layer(maps)
        found.append(maps.shape[-1])
    return found


def test_cnn_pools():
    assert sides(build(CnnConfig(width=2)), 32) == [32, 16, 16, 8, 8, 8]
    assert sides(build(CnnConfig(width=2, pools=[2, 4])), 32) == [32, 32, 16, 16, 8, 8]
    assert sides(build(CnnConfig(width=2, pools=[])), 32) == [32] * 6


@pytest.mark.parametrize("pools", [None, []])
def test_cnn_ends_in_the_papers_classifier(pools):
    network = build(CnnConfig(width=2, pools=pools), image_size=16)
    linear = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(32, 32), (32, 32), (32, 7)]  # 4C, C = 8


@pytest.mark.parametrize("name", ["cnn4", "cnn6"])
def test_cnn_has_a_classifier_of_any_depth(name):
    default, three = (build(CnnConfig(name=name, width=2, **more)) for more in ({}, THREE))
    for network, hidden in ((default, 2), (three, 3)):
        linear = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in linear] == [32] * hidden + [7]
        assert sum(isinstance(layer, nn.BatchNorm1d) for layer in network.classifier) == hidden
    assert parameters(three.layers) == parameters(default.layers)


def test_cnn_drops_whole_channels():
    network = build(CnnConfig(width=8, dropout=0.5))
    assert sum(isinstance(layer, nn.Dropout2d) for layer in network.modules()) == 6
    maps = network.layers[0](torch.randn(2, 3, 32, 32))
    dropped = (maps == 0).flatten(2).all(2)
    assert dropped.any()
    assert not dropped.all()
    plain = build(CnnConfig(width=8))
    assert not any(isinstance(layer, nn.Dropout2d) for layer in plain.modules())


def test_vgg_is_torchvisions():
    network = build(VggConfig(name="vgg11_bn", dropout=0.25), classes=1000, meta=True)
    assert parameters(network) == 132_868_840  # torchvision's table of weights
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert list(network.state_dict())[:2] == ["features.0.weight", "features.0.bias"]


def test_resnet_is_torchvisions():
    network = build(ResnetConfig(name="resnet50"), classes=1000, meta=True)
    assert parameters(network) == 25_557_032  # torchvision's table of weights
    assert "layer4.2.bn3.running_var" in network.state_dict()


@pytest.mark.parametrize(("layers", "expected"), [(20, 269_722), (56, 853_018), (110, 1_727_962)])
def test_resnet_cifar_is_the_papers(layers, expected):
    """0.27, 0.85 and 1.7 million parameters (He et al., table 6)."""
    network = build(ResnetCifarConfig(name=f"resnet{layers}_cifar"), classes=10, meta=True)
    assert parameters(network) == expected
    assert len(convolutions(network)) + 1 == layers


def test_resnet_cifar_shortcuts_take_every_second_pixel_and_append_zeros():
    network = build(ResnetCifarConfig())
    block = network.group2[0]
    nn.init.zeros_(block.norm2.weight)  # leaves the shortcut alone
    features = torch.rand(2, 16, 8, 8)
    out = block(features)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, :16], features[:, :, ::2, ::2])
    assert not out[:, 16:].any()
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("config", [CnnConfig(width=4), ResnetCifarConfig()])
def test_weights_follow_the_global_seed(config):
    networks = []
    for _ in range(2):
        torch.manual_seed(5)
        networks.append(build(config).state_dict())
    first, second = networks
    assert all(torch.equal(first[key], second[key]) for key in first)


COLOUR = [VggConfig(), ResnetConfig(), ResnetCifarConfig()]


@pytest.mark.parametrize("config", COLOUR)
def test_networks_for_colour_images_say_so(config):
    assert wanted_channels(config) == 3
    with pytest.raises(ConfigError, match=rf"^model: got '{config.name} for images of 1 channel"):
        build(config, channels=1, meta=True)


def test_other_networks_take_any_channels():
    assert wanted_channels(CnnConfig()) is None
    assert wanted_channels(CustomModelConfig(target="a:b")) is None


def test_a_plug_in_gets_what_it_asks_for():
    config = CustomModelConfig(target=f"{__name__}:own_network", args={"depth": 2})
    assert build(config, channels=2, image_size=4)(torch.zeros(1, 2, 4, 4)).shape == (1, 14)


def test_a_plug_in_that_is_no_module_is_refused():
    with pytest.raises(ConfigError, match=r"^model\.target: got .*Module. It returned a list"):
        build(CustomModelConfig(target=f"{__name__}:no_network"))


def test_timm_unpickles_no_file(monkeypatch):
    called = SimpleNamespace(
        is_model=lambda _: True, create_model=lambda **_: pytest.fail("called")
    )
    monkeypatch.setitem(sys.modules, "timm", called)
    config = TimmConfig(name="resnet18", args={"checkpoint_path": "weights.pth"})
    with pytest.raises(ConfigError, match=r"^model\.args\.checkpoint_path: got 'weights\.pth'"):
        build(config)


def test_the_catalogue_has_what_the_configuration_has():
    entries = catalogue()
    assert sorted(entry.name for entry in entries) == sorted(p.stem for p in CONF.glob("*.yaml"))
    assert all(entry.description and "\n" not in entry.description for entry in entries)
    assert dict(entries)["resnet110_cifar"].startswith("ResNet-110 for 32x32 images, 54 blocks")


def test_the_package_offers_three_functions():
    assert set(dglpipe.models.__all__) == {
        "Entry",
        "build_network",
        "catalogue",
        "wanted_channels",
    }
