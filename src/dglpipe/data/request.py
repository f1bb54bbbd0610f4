"""What the trainer asks a data set for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One batch, by the positions of its images in the split."""

    training: bool
    """The training split, augmented where the data set does that; else the test split."""
    epoch: int
    """Decides, with the seed and an image's position, how that image is augmented."""
    indices: Tensor
    """(B,) int64"""
