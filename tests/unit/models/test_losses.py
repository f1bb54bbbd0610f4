"""Local losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dglpipe.config import PluginConfig
from dglpipe.errors import ConfigError
from dglpipe.models.losses import build_loss, check_logits, check_loss, check_plug_in
from harness.plug_ins import WrongLoss

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


WRONG_LOSSES = {
    "vector": "a tensor of shape (3,) and type torch.float32",
    "float": "an object of type float",
    "detached": "a tensor of shape () and type torch.float32 without a gradient",
    "int": "a tensor of shape () and type torch.int64",
    "none": "an object of type NoneType",
}


@pytest.mark.parametrize("how", WRONG_LOSSES)
def test_a_plug_in_with_a_wrong_result_is_refused(how):
    with pytest.raises(ConfigError) as caught:
        check_plug_in(WrongLoss(how), "my_loss:build", 8, 3)
    message = str(caught.value)
    assert message.startswith(f"method.loss: got '{WRONG_LOSSES[how]}'; allowed: ")
    assert "a floating-point tensor of shape (), with a gradient" in message


def test_a_plug_in_that_fails_is_refused():
    with pytest.raises(ConfigError) as caught:
        check_plug_in(lambda logits, labels: logits @ labels, "my_loss:build", 8, 3)
    message = str(caught.value)
    assert message.startswith("method.loss: got 'my_loss:build'; allowed: a loss of logits (8, 3)")
    assert "RuntimeError: " in message


def test_a_plug_in_is_checked_on_a_whole_batch():
    seen = []

    def loss(logits, labels):
        seen.append((logits.shape, labels.tolist()))
        return logits.topk(5, dim=0).values.mean()

    state = torch.get_rng_state()
    check_plug_in(loss, "my_loss:build", 8, 3)
    assert seen == [((8, 3), [0, 1, 2, 0, 1, 2, 0, 1])]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_test_loss_needs_no_gradient():
    assert check_loss(torch.tensor(1.0), 0, learns=False) == 1
    with pytest.raises(ConfigError, match="without a gradient in stage 2"):
        check_loss(torch.tensor(1.0), 2)


WRONG_LOGITS = [
    (torch.zeros(4), "shape (4,)"),
    (torch.zeros(4, 11), "shape (4, 11)"),
    (torch.zeros(3, 10), "shape (3, 10)"),
    (torch.zeros(4, 10, 1, 1), "shape (4, 10, 1, 1)"),
    (torch.zeros(4, 10, dtype=torch.int64), "type torch.int64"),
    ([torch.zeros(4, 10)], "an object of type list"),
    (None, "an object of type NoneType"),
]


@pytest.mark.parametrize(("logits", "text"), WRONG_LOGITS, ids=[text for _, text in WRONG_LOGITS])
def test_wrong_logits_are_refused(logits, text):
    with pytest.raises(ConfigError) as caught:
        check_logits(logits, 4, 10, 1)
    assert str(caught.value).startswith("head: got ")
    assert text in str(caught.value)
    assert "in stage 1'; allowed: floating-point logits of shape (4, 10)" in str(caught.value)


def test_logits_of_any_floating_type_are_accepted():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        check_logits(torch.zeros(4, 10, dtype=dtype), 4, 10, 1)
