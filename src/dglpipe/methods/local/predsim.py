"""PredSim: similarity matching beside the loss of the head.

Nøkland and Eidnes, Training Neural Networks with Local Error Signals, ICML 2019 (arXiv 1901.06656):

    loss = s |S(g(h)) - S(Y)|^2 + (1 - s) CE(head(h), y)

S(X) has the cosine similarities of the rows of X, each row without its mean; g is a 3x3 convolution
whose maps count by their standard deviation; Y has the labels in one-hot form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dglpipe.config import PredsimConfig
from dglpipe.methods.local.base import LocalObjective
from dglpipe.models.features import Boundary
from dglpipe.pipeline.stage_module import LocalBatch

SIMILARITY = "similarity"


class Predsim(LocalObjective):
    """Similarity matching and the loss of the head."""

    settings: PredsimConfig

    def auxiliary(self, boundary: Boundary) -> Mapping[str, Callable[[], nn.Module]]:
        """The head, and the map g in front of the similarities."""
        features = boundary.features

        def similarity() -> nn.Module:
            channels, side, adapter = features.channels, features.side, features.adapter()
            own = (
                nn.Linear(channels, channels, bias=False)
                if side is None
                else nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            )
            return own if adapter is None else nn.Sequential(adapter, own)

        return {**super().auxiliary(boundary), SIMILARITY: similarity}

    def loss(self, batch: LocalBatch) -> Tensor:
        """Both losses; in the last stage, the loss of the classifier."""
        task = super().loss(batch)
        if self.is_last:
            return task
        projected = batch.auxiliary[SIMILARITY](batch.features)
        wanted = F.one_hot(batch.labels, batch.logits.shape[1])
        share = self.settings.similarity
        matching = F.mse_loss(similarities(projected), similarities(wanted))
        return share * matching + (1 - share) * task


def similarities(rows: Tensor) -> Tensor:
    """(B, B) cosine similarities of rows without their mean, in float32.

    Args:
        rows: vectors (B, C), or maps (B, C, H, W), where each channel counts by its standard
            deviation.
    """
    rows = rows.float()
    if rows.dim() == 4:
        is_pixel = rows.shape[2:].numel() == 1
        rows = rows.flatten(1) if is_pixel else rows.flatten(2).std(dim=2)
    centred = rows - rows.mean(dim=1, keepdim=True)
    normed = F.normalize(centred, dim=1, eps=1e-8)
    with torch.autocast(rows.device.type, enabled=False):
        return normed @ normed.T
