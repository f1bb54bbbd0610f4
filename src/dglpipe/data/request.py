"""What the trainer asks a data set for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Request(NamedTuple):
    """One batch, by the positions of its images in the split."""

    training: bool
    """The training split, augmented where the data set does that; else the test split."""
    epoch: int
    """Decides, with the seed and an image's position, how that image is augmented."""
    indices: Tensor
    """(B,) int64"""
