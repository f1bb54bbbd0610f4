"""Synthesisers: features of a stage -> the predicted gradient of the loss with respect to them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.models.features import Features


class Synthesiser(nn.Module):
    """Features (B, *shape), labels (B,) -> gradient (B, *shape).

    For maps: `hidden` x (convolution, BN, ReLU) and a convolution; for vectors and tokens the same
    with linear layers. The last layer starts with weights of zero. With labels, a linear layer of
    the one-hot labels is added in front of the first BN, as in the published code.

    Args:
        width: channels of the hidden layers; None: the channels of the features.
        kernel: side of the convolutions, odd.
        classes: N; 0: the labels are not read.
    """

    def __init__(
        self, features: Features, hidden: int, width: int | None, kernel: int, classes: int
    ) -> None:
        super().__init__()
        channels = features.channels
        inner = width or channels
        self._channels_at = 1 + features.channels_at
        self._classes = classes
        is_map = features.side is not None
        sizes = [channels, *[inner] * hidden, channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2) if is_map else nn.Linear(a, b)
            for a, b in itertools.pairwise(sizes)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(inner) if is_map else nn.BatchNorm1d(inner) for _ in range(hidden)
        )
        self.context = nn.Linear(classes, inner) if classes else None
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Without labels, as in a check of shapes, the context is left out."""
        values = features.movedim(self._channels_at, 1)
        tokens = values.shape[2:] if values.dim() == 3 else None
        if tokens is not None:  # one row per token
            values = values.movedim(1, 2).flatten(0, 1)
        for at, norm in enumerate(self.norms):
            values = self.layers[at](values)
            if at == 0 and self.context is not None and labels is not None:
                values = values + self._context(labels, values, tokens)
            values = F.relu(norm(values))
        values = self.layers[-1](values)
        if tokens is not None:
            values = values.unflatten(0, (-1, *tokens)).movedim(2, 1)
        predicted: Tensor = values.movedim(1, self._channels_at)
        return predicted

    def _context(self, labels: Tensor, values: Tensor, tokens: torch.Size | None) -> Tensor:
        assert self.context is not None
        one_hot = F.one_hot(labels, self._classes).to(self.context.weight.dtype)
        if tokens is not None:
            one_hot = one_hot.repeat_interleave(tokens[0], dim=0)
        added: Tensor = self.context(one_hot)
        return added[..., None, None] if values.dim() == 4 else added
