import pytest
import torch
from torch import nn

from dglpipe.config import AdamConfig, SgdConfig
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
    optimizer = build_optimizer(config, [weight])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.2
    assert group["weight_decay"] == 0.01
    assert group["fused"]
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight < 1).all()
