"""Lookahead: weights move to their running average every few steps.

Zhang et al., NeurIPS 2019 (arXiv 1907.08610), in the form of airbench (Jordan, arXiv 2404.00498):
the average begins with the initial weights and also covers the statistics of batch norm. After step
t of T, if t is a multiple of n,

    average <- lerp(average, weights, 1 - d^n (t / T)^3)
    weights <- average

and after the last step the weights become the average.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dglpipe.config import OptimizerConfig


class Lookahead:
    """The running average of a stage.

    Args:
        module: the stage, with its initial weights.
        every: n.
        decay: d.
        steps: T.
    """

    def __init__(self, module: nn.Module, every: int, decay: float, steps: int) -> None:
        self._every, self._decay, self._steps = every, decay, steps
        tensors = (*module.parameters(), *module.buffers())
        self._tensors = [one.detach() for one in tensors if one.is_floating_point()]
        self._average: list[Tensor] = []

    def begin(self) -> None:
        """Starts the average with the present weights, unless it has begun."""
        self._average = self._average or [one.clone() for one in self._tensors]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the average and the weights, if it is time; `step` counts from 1."""
        if step % self._every == 0:
            kept = self._decay**self._every * (step / self._steps) ** 3
            torch._foreach_lerp_(self._average, self._tensors, 1 - kept)
        if step % self._every == 0 or step == self._steps:
            torch._foreach_copy_(self._tensors, self._average)

    def state(self) -> list[Tensor]:
        """The average, for a checkpoint."""
        return self._average

    def restore(self, state: Sequence[Tensor]) -> None:
        """Continues with a result of `state`."""
        pairs = zip(state, self._tensors, strict=True)
        self._average = [one.to(like.device) for one, like in pairs]


def build_lookahead(config: OptimizerConfig, module: nn.Module, steps: int) -> Lookahead | None:
    """The running average that `config` asks for; None: none.

    Args:
        steps: T, steps of the stage in the run.
    """
    if not config.lookahead:
        return None
    return Lookahead(module, config.lookahead, config.lookahead_decay, steps)
