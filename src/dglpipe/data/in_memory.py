"""A data set that is held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dglpipe.data.dataset import Request
from dglpipe.data.sampler import uniform
from dglpipe.data.transforms import CROP_DRAWS, Normalisation, crop_and_flip


@dataclass(frozen=True, eq=False)
class Split:
    """The images of training or those of testing."""

    images: Tensor
    """(n,H,W,C) uint8, or float32 which is not normalised any more."""
    labels: Tensor
    """(n,) int64"""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Answers requests from two tensors: one gather, augmentation, normalisation.

    It keeps nothing between batches: `close` has nothing to do.
    """

    workers: ClassVar[int | None] = None
    train: Split
    test: Split
    normalisation: Normalisation = field(default_factory=Normalisation)
    seed: int = 0
    augment: bool = False
    """Training images are shifted by up to 4 pixels and mirrored."""

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B,C,H,W) float32, channels last, and labels (B,) int64, a request each."""
        return map(self._answer, requests)

    def close(self) -> None:
        """Nothing is open."""

    def _answer(self, request: Request) -> tuple[Tensor, Tensor]:
        split = self.train if request.training else self.test
        images = split.images.index_select(0, request.indices)
        if request.training and self.augment:
            draws = uniform(self.seed, request.epoch, request.indices, CROP_DRAWS)
            images = crop_and_flip(images, draws)
        return self.normalisation(images), split.labels.index_select(0, request.indices)
