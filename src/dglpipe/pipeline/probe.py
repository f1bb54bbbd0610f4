"""Convergence of a stage: the gradient norm of its local loss, and the drift of its input law.

Belilovsky et al. (ICML 2020) bound the gradient of a local loss by c_j^t, the total-variation
distance between the law of the input of stage j at step t and its limit. Neither law is known. The
drift compares two measurements of a fixed probe batch, by mean and standard deviation of each
channel of the input. It is the 2-Wasserstein distance of two normal laws with independent channels,
relative to the size of the input:

    drift = sqrt(sum_c ((m_c - m'_c)^2 + (s_c - s'_c)^2)) / sqrt(sum_c (m'_c^2 + s'_c^2))

with mean m_c and standard deviation s_c of channel c, and m', s' at the last measurement.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PART = 32
"""Rows that are converted to fp64 at a time."""


class StageProbe:
    """Measures one stage. Nothing waits for the device before `take`.

    Args:
        every: steps between two measurements; 0: none.
        channels_at: dimension of one row of the input that holds the channels.
    """

    def __init__(self, every: int = 0, channels_at: int = 0) -> None:
        self._every = every
        self._channels_at = channels_at
        self._sums: list[Tensor] = []
        self._count = 0
        self._last: Tensor | None = None
        self._norm: Tensor | None = None

    def measures(self, step: int) -> bool:
        """Whether the gradient of `step` is measured."""
        return self._every > 0 and step % self._every == 0

    def add_norm(self, norm: Tensor) -> None:
        """Keeps the gradient norm () of a step."""
        self._norm = norm

    def add_inputs(self, inputs: Tensor) -> None:
        """Adds inputs (B, ...) of the probe batch."""
        for part in torch.split(inputs.detach(), PART):
            values = part.double().movedim(self._channels_at + 1, 0).flatten(1)
            self._sums.append(torch.stack([values.sum(1), values.square().sum(1)]))
            self._count += values.shape[1]

    def take(self) -> tuple[float | None, float | None]:
        """Gradient norm and drift of a measurement; waits for the device.

        Returns:
            The norm is None if the stage does not learn. The drift is None at the first
            measurement.
        """
        mean, square = torch.stack(self._sums).sum(0) / self._count
        moments = torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()])
        before, self._last = self._last, moments
        norm, self._norm = self._norm, None
        self._sums, self._count = [], 0
        drift = None
        if before is not None:
            drift = float((moments - before).norm() / before.norm().clamp_min(1e-12))
        return None if norm is None else float(norm), drift

    def state(self) -> dict[str, Any]:
        """What the next measurement needs, for a checkpoint."""
        return {"moments": self._last, "norm": self._norm}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Continues with a result of `state`."""
        moments, norm = state["moments"], state["norm"]
        self._last = None if moments is None else moments.to(device)
        self._norm = None if norm is None else norm.to(device)
