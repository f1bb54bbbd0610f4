"""The training losses of a stage by step, stored without synchronizing with the device."""

from __future__ import annotations

import torch
from torch import Tensor


class LossHistory:
    """Stores the loss of every batch until the next `take`.

    A step only stores a reference to its loss. Every `CAPACITY` losses become one tensor, so that
    a long interval between two calls of `take` needs a few bytes per step.
    """

    CAPACITY = 256

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._blocks: list[Tensor] = []
        self._steps: list[int] = []

    def add(self, loss: Tensor) -> None:
        """Adds the mean loss () of a batch or micro-batch of the current step."""
        if len(self._losses) == self.CAPACITY:
            self._fold()
        self._losses.append(loss.detach())

    def end_step(self, step: int) -> None:
        """Assigns the losses since the last call to `step`."""
        count = len(self._blocks) * self.CAPACITY + len(self._losses)
        self._steps += [step] * (count - len(self._steps))

    def take(self) -> list[tuple[int, float]]:
        """The losses since the last call, each with its step; waits for the device."""
        if not self._steps:
            return []
        self._fold()
        losses = torch.cat(self._blocks).tolist()
        steps = self._steps
        self.clear()
        return list(zip(steps, losses, strict=True))

    def clear(self) -> None:
        """Drops all losses, without waiting for the device."""
        self._losses, self._blocks, self._steps = [], [], []

    def _fold(self) -> None:
        if self._losses:
            self._blocks.append(torch.stack(self._losses))
            self._losses = []
