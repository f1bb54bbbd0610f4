"""A network with its heads on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.data import open_data
from dglpipe.errors import ConfigError
from harness.configs import build_stages, make_config


def wrong_head(channels, classes):
    """Expects one more channel than the features have."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels + 1, classes))


def computing_network(channels, classes):
    """Its constructor reads values, as stochastic depth and RegNets do."""
    rates = [rate.item() for rate in torch.linspace(0, 0.2, 3)]
    layers = [nn.Conv2d(channels if at == 0 else 4, 4, 3, padding=1) for at in range(3)]
    drops = [nn.Dropout2d(rate) for rate in rates]
    body = [part for pair in zip(layers, drops, strict=True) for part in pair]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class MeanHead(nn.Linear):
    """Its state_dict keys are `weight` and `bias`."""

    def __init__(self, channels, classes):
        super().__init__(channels, classes)

    def forward(self, features):
        return super().forward(features.mean(dim=(2, 3)))


def clashing_network(channels, classes):
    """Its first layer is named `head`, as the head of a stage."""
    network = nn.Sequential()
    network.add_module("head", nn.Conv2d(channels, 4, 1))
    network.add_module("body", nn.Conv2d(4, 4, 1))
    for module in (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)):
        network.append(module)
    return network


def on_paper(*overrides):
    config = make_config(*overrides)
    return build_stages(config, open_data(config.data, config.seed).info, 2, meta=True)


def test_a_head_that_does_not_fit_is_refused():
    drawn = on_paper("head=custom", f"head.target={__name__}:wrong_head")
    with pytest.raises(ConfigError, match=r"^head: got 'Sequential'; .*stage 0.*RuntimeError"):
        drawn.check_outputs()


def test_a_constructor_may_look_at_values():
    drawn = on_paper("model=custom", f"model.target={__name__}:computing_network")
    drawn.check_outputs()
    assert all(weights.is_meta for part in drawn.modules for weights in part.parameters())


def test_keys_that_a_head_would_take_are_refused():
    drawn = on_paper(
        "model=custom",
        f"model.target={__name__}:clashing_network",
        "head=custom",
        f"head.target={__name__}:MeanHead",
    )
    with pytest.raises(ConfigError, match=r"^model: got 'the key head\.bias in stage 0'"):
        drawn.check_outputs()


def test_drawing_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    on_paper()
    assert torch.equal(torch.rand(2), expected)
