"""Construction of the optimizers of torch.optim, with fused kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import nn

from dglpipe.config import OptimizerConfig, SgdConfig

LR_FACTOR = "lr_factor"
"""Key of a parameter group: factor of its learning rate."""


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    auxiliary: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Builds the optimizer of one stage.

    Args:
        parameters: all parameters of the stage.
        auxiliary: those of its auxiliary modules.
    """
    groups = _groups(config, list(parameters), {id(one) for one in auxiliary})
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return adam(
        groups,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _groups(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter], auxiliary: Set[int]
) -> list[dict[str, Any]]:
    """One group, or one for the segments and one for the auxiliary modules if they differ."""
    decay = config.head_weight_decay
    if not auxiliary or (config.head_lr_factor == 1 and decay is None):
        return [{"params": parameters, LR_FACTOR: 1.0}]
    own = [one for one in parameters if id(one) not in auxiliary]
    heads = [one for one in parameters if id(one) in auxiliary]
    return [
        {"params": own, LR_FACTOR: 1.0},
        {
            "params": heads,
            LR_FACTOR: config.head_lr_factor,
            "weight_decay": config.weight_decay if decay is None else decay,
        },
    ]


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives SGD momentum buffers of zeros if it has none; for training with loss scaling.

    The fused SGD of torch 2.14 allocates its buffers without values in the first step, and a
    loss scaler may skip this step: the next step would then use undefined values. With
    zeros, the first step that is not skipped sets the buffers to the gradients, as without scaling.
    """
    if not isinstance(optimizer, torch.optim.SGD) or optimizer.state:
        return
    for group in optimizer.param_groups:
        if group["momentum"]:
            for one in group["params"]:
                optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
