"""Local losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.config import PluginConfig
from dglpipe.errors import ConfigError
from dglpipe.models.losses import build_loss

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
LABELS = torch.tensor([0, 2])


def scaled(factor):
    return lambda logits, labels: factor * nn.functional.cross_entropy(logits, labels)


def no_loss():
    return 3


def plug_in(name, **args):
    return PluginConfig(target=f"{__name__}:{name}", args=args)


def test_cross_entropy_is_the_mean_over_the_rows():
    expected = -torch.log_softmax(LOGITS, 1)[[0, 1], LABELS].mean()
    assert torch.allclose(build_loss("cross_entropy", 0.0)(LOGITS, LABELS), expected)


def test_label_smoothing_spreads_its_share_over_all_classes():
    plain = build_loss("cross_entropy", 0.0)(LOGITS, LABELS)
    uniform = -torch.log_softmax(LOGITS, 1).mean()
    smoothed = build_loss("cross_entropy", 0.1)(LOGITS, LABELS)
    assert torch.allclose(smoothed, 0.9 * plain + 0.1 * uniform)


def test_a_plug_in_is_built_with_its_arguments():
    loss = build_loss(plug_in("scaled", factor=3.0), 0.0)
    plain = build_loss("cross_entropy", 0.0)
    assert torch.allclose(loss(LOGITS, LABELS), 3 * plain(LOGITS, LABELS))


def test_a_module_can_be_a_plug_in():
    config = PluginConfig(target="torch.nn.MultiMarginLoss", args={"margin": 2.0})
    assert isinstance(build_loss(config, 0.0), nn.MultiMarginLoss)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"^method\.loss: got 'hinge'; allowed: cross_entropy"):
        build_loss("hinge", 0.0)


def test_label_smoothing_of_a_plug_in_is_refused():
    with pytest.raises(ConfigError, match=r"^label_smoothing: got 0\.1; .*method\.loss\.args"):
        build_loss(plug_in("scaled", factor=1.0), 0.1)


def test_a_plug_in_that_gives_no_function_is_refused():
    with pytest.raises(
        ConfigError, match=r"^method\.loss\.target: got .*no_loss.*It returned a int"
    ):
        build_loss(plug_in("no_loss"), 0.0)
