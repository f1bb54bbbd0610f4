"""Auxiliary heads, compared with the heads of the authors' code."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.config import CnnSrConfig, CustomHeadConfig
from dglpipe.config.head import HEADS
from dglpipe.errors import ConfigError
from dglpipe.models.heads import build_head, check_output
from harness.plug_ins import WrongHead

torch.set_num_threads(1)
NAMES = ["mlp_sr", "mlp", "cnn", "linear", "cnn_sr"]
C, N = 6, 5


def head(name, side, channels=C):
    return build_head(HEADS[name](name=name), channels, side, N)


def own_head(channels, side, classes, scale=1):
    return nn.Linear(channels * scale, classes)


def no_head():
    return "nothing"


def layers(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def shapes_through(module, features):
    """Shape after each layer of a Sequential."""
    shapes = []
    for layer in module:
        features = layer(features)
        shapes.append(tuple(features.shape[1:]))
    return shapes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (8, 6), (14, 14), (1, 9)])
def test_a_head_gives_logits_and_leaves_its_input_alone(name, side):
    features = torch.randn(4, C, *side)
    before = features.clone()
    logits = head(name, side)(features.requires_grad_())
    assert logits.shape == (4, N)
    assert torch.equal(features, before)
    logits.sum().backward()
    assert features.grad is not None


def test_mlp_sr_pools_to_a_quarter_then_to_two():
    module = head("mlp_sr", (16, 16))
    shapes = shapes_through(module, torch.randn(2, C, 16, 16))
    assert shapes[0] == (C, 4, 4)
    assert shapes[9] == (C, 4, 4)  # after 3 x (convolution, BN, ReLU)
    assert shapes[10] == (C, 2, 2)
    assert [tuple(conv.weight.shape) for conv in layers(module, nn.Conv2d)] == [(C, C, 1, 1)] * 3
    assert all(conv.bias is None for conv in layers(module, nn.Conv2d))
    assert_mlp(module)


def test_mlp_is_mlp_sr_without_convolutions():
    module = head("mlp", (16, 16))
    assert shapes_through(module, torch.randn(2, C, 16, 16))[:2] == [(C, 4, 4), (C, 2, 2)]
    assert not layers(module, nn.Conv2d)
    assert_mlp(module)


def assert_mlp(module):
    sizes = [(linear.in_features, linear.out_features) for linear in layers(module, nn.Linear)]
    assert sizes == [(4 * C, 4 * C)] * 3 + [(4 * C, N)]
    assert len(layers(module, nn.BatchNorm1d)) == 3


@pytest.mark.parametrize(
    ("settings", "widths", "sides"),
    [
        ({}, [(C, 9)], [4, 4, 4, 4, 2]),
        ({"side": 8, "depth": 2}, [(C, 9), (9, 9)], [8] * 7 + [2]),
        ({"side": 1, "width": 3}, [(C, 3)], [1, 1, 1, 1, 1]),
        ({"side": 100, "width": 3}, [(C, 3)], [16, 16, 16, 16, 2]),
    ],
)
def test_cnn_sr_convolves_a_reduced_map(settings, widths, sides):
    module = build_head(CnnSrConfig(name="cnn_sr", **settings), C, (16, 16), N, width=9)
    shapes = shapes_through(module, torch.randn(2, C, 16, 16))
    assert [shape[1] for shape in shapes[:-2]] == sides
    convolutions = layers(module, nn.Conv2d)
    assert [(one.in_channels, one.out_channels) for one in convolutions] == widths
    assert all(one.kernel_size == (3, 3) and one.bias is None for one in convolutions)
    assert layers(module, nn.Linear)[0].in_features == widths[-1][1] * sides[-1] ** 2


def test_cnn_convolves_at_full_size():
    module = head("cnn", (16, 16))
    shapes = shapes_through(module, torch.randn(2, C, 16, 16))
    assert shapes[:8] == [(C, 16, 16)] * 6 + [(C, 2, 2)] * 2
    assert [tuple(conv.weight.shape) for conv in layers(module, nn.Conv2d)] == [(C, C, 3, 3)] * 2
    assert isinstance(module[7], nn.BatchNorm2d)
    sizes = [(linear.in_features, linear.out_features) for linear in layers(module, nn.Linear)]
    assert sizes == [(4 * C, N)]


def test_linear_is_one_layer():
    parameters = sum(weights.numel() for weights in head("linear", (16, 16)).parameters())
    assert parameters == 4 * C * N + N


@pytest.mark.parametrize(("side", "quarter"), [(32, 8), (14, 4), (7, 2), (4, 1), (3, 1)])
def test_pools_round_up_and_never_enlarge(side, quarter):
    shapes = shapes_through(head("mlp", (side, side)), torch.randn(2, C, side, side))
    small = min(2, quarter)
    assert shapes[:3] == [(C, quarter, quarter), (C, small, small), (C * small**2,)]


@pytest.mark.parametrize("name", ["mlp_sr", "mlp", "linear"])
def test_vectors_have_heads_too(name):
    module = head(name, None)
    features = torch.randn(4, C)
    assert module(features).shape == (4, N)
    assert not layers(module, nn.Conv2d)
    assert len(layers(module, nn.Linear)) == (1 if name == "linear" else 4)


def test_a_head_of_convolutions_on_vectors_is_refused():
    with pytest.raises(ConfigError, match=r"^head\.name: got 'cnn'; .*\(B, C\)"):
        head("cnn", None)


@pytest.mark.parametrize("side", [(16, 16), None])
@pytest.mark.parametrize("name", NAMES)
def test_kaiming_is_the_init_of_the_authors_vgg(name, side):
    if side is None and name in ("cnn", "cnn_sr"):
        return
    config = HEADS[name](name=name, init="kaiming")
    torch.manual_seed(0)
    module = build_head(config, 64, side, N)
    assert sum(weights.numel() for weights in module.parameters()) > 0
    for layer in layers(module, nn.Conv2d):
        outputs, _, height, width = layer.weight.shape
        expected = (2 / (outputs * height * width)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert layer.bias is None
    for layer in layers(module, nn.Linear):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
    for layer in layers(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        assert (layer.weight == 1).all()
        assert not layer.bias.any()


def test_the_init_changes_no_other_weights_and_can_be_on_meta():
    torch.manual_seed(0)
    default = head("mlp_sr", (16, 16))
    assert default[1].weight.std().item() > 0
    with torch.device("meta"):
        config = HEADS["mlp_sr"](name="mlp_sr", init="kaiming")
        module = build_head(config, C, (16, 16), N)
    assert module.state_dict().keys() == default.state_dict().keys()


def test_a_plug_in_gets_what_it_asks_for():
    config = CustomHeadConfig(target=f"{__name__}:own_head", args={"scale": 2})
    assert tuple(build_head(config, C, (4, 4), N).weight.shape) == (N, 2 * C)


def test_a_plug_in_that_is_no_module_is_refused():
    config = CustomHeadConfig(target=f"{__name__}:no_head")
    with pytest.raises(ConfigError, match=r"^head\.target: got .*Module. It returned a str"):
        build_head(config, C, (4, 4), N)


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_global_seed(name):
    torch.manual_seed(3)
    first = head(name, (4, 4)).state_dict()
    torch.manual_seed(3)
    second = head(name, (4, 4)).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_even_windows_are_pooled_without_the_adaptive_pool():
    """The backward of the adaptive pool is not deterministic on CUDA."""
    assert not layers(head("mlp_sr", (16, 16)), nn.AdaptiveAvgPool2d)
    assert layers(head("mlp_sr", (14, 14)), nn.AdaptiveAvgPool2d)
    features = torch.randn(2, C, 16, 16)
    expected = nn.functional.adaptive_avg_pool2d(features, 4)
    assert torch.allclose(head("mlp_sr", (16, 16))[0](features), expected, atol=1e-6)


WRONG = {
    "flat": r"head: got \(2,\)",
    "one more": r"head: got \(2, 4\)",
    "map": r"head: got \(2, 3, 1, 1\)",
    "int": r"head: got '\(2, 3\) of type torch.int64'; allowed: floating-point logits",
    "none": "head: got 'NoneType'",
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_logits_of_a_plug_in_are_refused(how):
    module = WrongHead(C, 3, how)
    with pytest.raises(ConfigError, match=WRONG[how]):
        check_output("head", module, (C, 4, 4), 3, torch.device("cpu"))
