import pytest
import torch
from torch import nn

from dglpipe.config import AdamConfig, SgdConfig
from dglpipe.pipeline.lookahead import Lookahead, build_lookahead
from dglpipe.pipeline.optim import build_optimizer


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (SgdConfig(lr=0.2, momentum=0.8, weight_decay=0.01), torch.optim.SGD),
        (AdamConfig(name="adam", lr=0.2, weight_decay=0.01), torch.optim.Adam),
        (AdamConfig(name="adamw", lr=0.2, weight_decay=0.01), torch.optim.AdamW),
    ],
)
def test_settings_arrive(config, kind):
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(config, nn.ParameterList([weight]))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.2
    assert group["weight_decay"] == 0.01
    assert group["fused"]
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight < 1).all()


def stage_of(*, bias=True):
    body, head = nn.Sequential(nn.Conv2d(1, 2, 1, bias=bias), nn.BatchNorm2d(2)), nn.Linear(2, 2)
    return nn.ModuleDict({"body": body, "head": head}), head


def test_equal_settings_are_one_group():
    module, head = stage_of()
    (group,) = build_optimizer(SgdConfig(), module, [head]).param_groups
    assert len(group["params"]) == 6


def test_heads_and_biases_of_norms_have_their_own_settings():
    module, head = stage_of()
    config = SgdConfig(
        lr=0.5, weight_decay=0.1, decoupled=True, head_lr_factor=0.5, norm_bias_lr_factor=8.0,
        head_weight_decay=0.2,
    )  # fmt: skip
    found = {
        id(one): (group["lr_factor"], group["weight_decay"])
        for group in build_optimizer(config, module, [head]).param_groups
        for one in group["params"]
    }
    convolution, norm = module["body"]
    assert found[id(convolution.weight)] == found[id(norm.weight)] == (1.0, 0.2)
    assert found[id(norm.bias)] == (8.0, 0.1 / 4)
    assert found[id(head.weight)] == found[id(head.bias)] == (0.5, 0.2 / 0.25)


def test_decoupled_decay_does_not_depend_on_the_rate():
    """A weight without a gradient loses the fraction `weight_decay` in its first step."""
    for rate in (0.01, 2.0):
        weight = nn.Parameter(torch.full((2,), 4.0))
        config = SgdConfig(lr=rate, weight_decay=0.25, decoupled=True)
        optimizer = build_optimizer(config, nn.ParameterList([weight]))
        weight.grad = torch.zeros(2)
        optimizer.step()
        assert weight.tolist() == pytest.approx([3.0, 3.0])


class TestLookahead:
    def test_it_is_the_formula(self):
        weight = nn.Parameter(torch.tensor([1.0]))
        norm = nn.BatchNorm2d(1)
        module = nn.ModuleList([nn.ParameterList([weight]), norm])
        lookahead = Lookahead(module, every=2, decay=0.9, steps=5)
        lookahead.begin()
        average = 1.0
        for step in range(1, 6):
            lookahead.begin()
            with torch.no_grad():
                weight += 1
                norm.running_mean += 1
            now = weight.item()
            lookahead.after_step(step)
            if step % 2 == 0:
                kept = 0.9**2 * (step / 5) ** 3
                average = kept * average + (1 - kept) * now
            wanted = average if step % 2 == 0 or step == 5 else now
            assert weight.item() == pytest.approx(wanted)
            assert norm.running_mean.item() == pytest.approx(wanted - 1)

    def test_no_lookahead_by_default(self):
        assert build_lookahead(SgdConfig(), nn.Linear(1, 1), 5) is None
