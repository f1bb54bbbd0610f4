"""Construction of the optimizers of torch.optim, with fused kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from dglpipe.config import OptimizerConfig, SgdConfig


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Builds the optimizer of one stage."""
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return adam(
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


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
