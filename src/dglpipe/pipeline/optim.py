"""Construction of the optimizers of torch.optim, with fused kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dglpipe.config import OptimizerConfig, SgdConfig

LR_FACTOR = "lr_factor"
"""Key of a parameter group: factor of its learning rate."""


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, auxiliary: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """Builds the optimizer of one stage.

    Args:
        module: the whole stage.
        auxiliary: its auxiliary modules.
    """
    groups = _groups(config, module, auxiliary)
    if isinstance(config, SgdConfig):
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            fused=True,
        )
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return adam(
        groups,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


def _groups(
    config: OptimizerConfig, module: nn.Module, auxiliary: Iterable[nn.Module]
) -> list[dict[str, Any]]:
    """The parameters, grouped by the factor of the learning rate and the weight decay."""
    heads = {id(one) for part in auxiliary for one in part.parameters()}
    norms = [part for part in module.modules() if isinstance(part, _NORMS)]
    biases = {id(part.bias) for part in norms if part.bias is not None}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for one in module.parameters():
        factor, decay = 1.0, config.weight_decay
        if id(one) in heads:
            factor *= config.head_lr_factor
            decay = decay if config.head_weight_decay is None else config.head_weight_decay
        if id(one) in biases:
            factor *= config.norm_bias_lr_factor
        if isinstance(config, SgdConfig) and config.decoupled:
            decay /= config.lr * factor
        groups.setdefault((factor, decay), []).append(one)
    return [
        {"params": params, LR_FACTOR: factor, "weight_decay": decay}
        for (factor, decay), params in groups.items()
    ]


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives SGD momentum buffers of zeros if it has none.

    The fused SGD of torch 2.14 allocates its buffers without values in the first step. A loss
    scaler may skip this step: the next step would then use undefined values. And it fails if only
    some weights of a group have had a gradient. With zeros, the first step with a gradient sets
    the buffers to the gradients, as otherwise.
    """
    if not isinstance(optimizer, torch.optim.SGD) or optimizer.state:
        return
    for group in optimizer.param_groups:
        if group["momentum"]:
            for one in group["params"]:
                optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
