"""A data set that decodes images in worker processes during training."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dglpipe.data.dataset import Request
from dglpipe.data.decode import decode
from dglpipe.data.image_index import ImageIndex
from dglpipe.data.loading_processes import LoadingProcesses
from dglpipe.data.sampler import augmentation_draws
from dglpipe.data.transforms import (
    BOX_DRAWS,
    CROP_DRAWS,
    Augmentation,
    Normalisation,
    centre,
    crop_and_flip,
    random_box,
    resize,
)

Batch = tuple[Tensor, Tensor]
"""Images and labels."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """Decodes and augments batches, in the loading processes.

    The random numbers are a function of (seed, epoch, index): the batches do not depend on the
    number of processes, or on which process prepares which batch.
    """

    folder: ImageIndex
    """Files of the data set."""
    transform: str
    """`cifar` or `imagenet`."""
    height: int
    """H of the images in a batch, in pixels."""
    width: int
    """W of the images in a batch, in pixels."""
    seed: int
    """Seed of the augmentation."""
    augmentation: Augmentation | None
    """Crops and flips of training images; None: none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the images."""
        return self.height, self.width, 3

    def labels(self, request: Request) -> Tensor:
        """(B,) int64"""
        files = self.folder.train if request.training else self.folder.test
        return torch.tensor([files.labels[index] for index in request.indices.tolist()])

    def decode(self, request: Request) -> Tensor:
        """Images (B,H,W,C) uint8.

        Raises:
            DataError: a file cannot be decoded.
        """
        training, epoch, positions = request
        indices = positions.tolist()
        own = self.augmentation if training else None
        if own is None:
            return torch.stack([self._plain(training, index) for index in indices])
        if self.transform == "imagenet":
            count = BOX_DRAWS + 1
            draws = augmentation_draws(self.seed, epoch, positions, count, own.flip).tolist()
            return torch.stack(list(map(self._random_crop, indices, draws)))
        images = torch.stack([self._plain(training, index) for index in indices])
        places = augmentation_draws(self.seed, epoch, positions, CROP_DRAWS, own.flip)
        return crop_and_flip(images, places, own)

    def _plain(self, training: bool, index: int) -> Tensor:
        """(H,W,3) without augmentation: resized, or for `imagenet` the centre crop."""
        image = decode(self.folder.path(training, index))
        if self.transform == "imagenet":
            return centre(image, self.height)
        return resize(image[None], self.height, self.width)[0]

    def _random_crop(self, index: int, draws: list[float]) -> Tensor:
        """(H,W,3): RandomResizedCrop, flipped if the last of `draws` is below 1/2."""
        image = decode(self.folder.path(True, index))
        top, left, height, width = random_box(image.shape[0], image.shape[1], draws[:BOX_DRAWS])
        crop = image[top : top + height, left : left + width]
        resized = resize(crop[None], self.height, self.width)[0]
        return resized.flip(1) if draws[BOX_DRAWS] < 0.5 else resized


class Streamed:
    """A `DataSet` that decodes image files in loading processes, ahead of training.

    Args:
        decoder: prepares the pixels of a batch.
        normalisation: applied in the calling process, since uint8 images need a quarter of the
            bandwidth between processes.
        workers: loading processes; 0: decode in the calling process.
        timeout_s: see `LoadingProcesses`.
    """

    def __init__(
        self, decoder: Decoder, normalisation: Normalisation, workers: int, timeout_s: float
    ) -> None:
        self._decoder = decoder
        self._normalisation = normalisation
        self.workers: int | None = workers
        self._timeout_s = timeout_s
        self._iterators: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yields images (B,C,H,W) float32, channels last, and labels (B,) int64 per request.

        The loading processes run until the iterator is exhausted or closed, or the data set is
        closed.

        Raises:
            DataError: a file cannot be decoded; raised instead of the batch with the file.
            LoadingError: a loading process ended, failed or is too slow, or has no memory.
        """
        batches = self._in_processes(requests) if self.workers else self._here(requests)
        self._iterators.add(batches)
        return batches

    def close(self) -> None:
        """Ends the loading processes of all iterators."""
        for batches in list(self._iterators):
            batches.close()

    def _in_processes(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        with LoadingProcesses(self._decoder, self.workers or 0, self._timeout_s) as processes:
            for request, images in processes.load(requests):
                yield self._normalisation(images), self._decoder.labels(request)

    def _here(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        for request in requests:
            images = self._decoder.decode(request)
            yield self._normalisation(images), self._decoder.labels(request)
