"""Measures the residual branches of a stage in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BranchCost(nn.Module):
    """Passes a residual branch on, and keeps its mean square until `take`.

    Attributes:
        is_active: whether the branch is measured in training; False: it is only passed on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_active = True
        self._cost: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        if self.is_active and self.training and torch.is_grad_enabled():
            self._cost = branch.float().square().mean()
        return branch

    def take(self) -> Tensor:
        """The mean square () of the branch in the last forward, with its graph. Drops it."""
        cost, self._cost = self._cost, None
        assert cost is not None, "a branch is measured in every training forward"
        return cost


def branch_costs(module: nn.Module) -> list[BranchCost]:
    """All measured branches of `module`, in order of execution."""
    return [one for one in module.modules() if isinstance(one, BranchCost) and one.is_active]
