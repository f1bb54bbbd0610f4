"""A data set that is kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dglpipe.data.dataset import Request
from dglpipe.data.sampler import augmentation_draws
from dglpipe.data.transforms import CROP_DRAWS, Augmentation, Normalisation, crop_and_flip


@dataclass(frozen=True, eq=False)
class Split:
    """The images and labels of one split."""

    images: Tensor
    """(n,H,W,C) uint8, or float32; float32 images are not normalised."""
    labels: Tensor
    """(n,) int64, from 0."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A `DataSet` of two splits in memory: gathers, augments and normalises each batch."""

    workers: ClassVar[int | None] = None
    """None: the calling process prepares the batches."""
    train: Split
    """Training split."""
    test: Split
    """Test split."""
    normalisation: Normalisation = field(default_factory=Normalisation)
    """Applied to uint8 images; default: scales to [0, 1]."""
    seed: int = 0
    """Seed of the augmentation."""
    augmentation: Augmentation | None = None
    """Crops and flips of training images; None: none."""

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B,C,H,W) float32, channels last, and labels (B,) int64 per request."""
        return map(self._answer, requests)

    def close(self) -> None:
        """Does nothing: there is no background work."""

    def _answer(self, request: Request) -> tuple[Tensor, Tensor]:
        split = self.train if request.training else self.test
        images = split.images.index_select(0, request.indices)
        own = self.augmentation
        if request.training and own is not None:
            place = self.seed, request.epoch, request.indices
            draws = augmentation_draws(*place, CROP_DRAWS, own.flip)
            images = crop_and_flip(images, draws, own)
        return self.normalisation(images), split.labels.index_select(0, request.indices)
