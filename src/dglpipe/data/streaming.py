"""A data set that decodes images in worker processes during training."""

from __future__ import annotations

import multiprocessing
import os
import weakref
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dglpipe.data.dataset import Request
from dglpipe.data.decode import decode
from dglpipe.data.image_index import ImageIndex
from dglpipe.data.sampler import uniform
from dglpipe.data.transforms import (
    BOX_DRAWS,
    CROP_DRAWS,
    Normalisation,
    centre,
    crop_and_flip,
    random_box,
    resize,
)
from dglpipe.errors import DataError

_PREFETCH = 2
"""Batches that each worker process prepares ahead."""

Batch = tuple[Tensor, Tensor]
"""Images and labels."""
Job = tuple[bool, int, list[int]]
"""A `Request` as it is sent to a worker: as a list, since a tensor takes a file descriptor."""


@dataclass(frozen=True, eq=False)
class Decoder(Dataset["Batch | DataError"]):
    """Decodes and augments one batch; runs in the worker processes.

    The random numbers are a function of (seed, epoch, index): the batches do not depend on the
    number of workers, or on which worker prepares which batch.
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
    augment: bool
    """Whether training images are augmented."""

    def __getitem__(self, job: Job) -> Batch | DataError:
        """Images (B,H,W,3) uint8 and labels (B,) int64.

        Returns a DataError instead of raising it: DataLoader prepends text to the messages of
        exceptions in workers.
        """
        training, epoch, indices = job
        files = self.folder.train if training else self.folder.test
        try:
            images = self._images(training, epoch, indices)
        except DataError as error:
            return error
        return images, torch.tensor([files.labels[index] for index in indices])

    def _images(self, training: bool, epoch: int, indices: list[int]) -> Tensor:
        if not (training and self.augment):
            return torch.stack([self._plain(training, index) for index in indices])
        positions = torch.tensor(indices, dtype=torch.int64)
        if self.transform == "imagenet":
            draws = uniform(self.seed, epoch, positions, BOX_DRAWS + 1).tolist()
            return torch.stack(list(map(self._random_crop, indices, draws)))
        images = torch.stack([self._plain(training, index) for index in indices])
        return crop_and_flip(images, uniform(self.seed, epoch, positions, CROP_DRAWS))

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
    """A `DataSet` that decodes image files in worker processes, ahead of training.

    Args:
        decoder: prepares the pixels of a batch, in the worker processes.
        normalisation: applied in the calling process, since uint8 images need a quarter of the
            bandwidth between processes.
        workers: worker processes; 0: decode in the calling process.
    """

    def __init__(self, decoder: Decoder, normalisation: Normalisation, workers: int) -> None:
        self._decoder = decoder
        self._normalisation = normalisation
        self.workers: int | None = workers
        self._iterators: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yields images (B,C,H,W) float32, channels last, and labels (B,) int64 per request.

        The workers run until the iterator is exhausted or closed, or the data set is closed.

        Raises:
            DataError: a file cannot be decoded; raised instead of the batch with the file.
        """
        batches = self._batches(requests)
        self._iterators.add(batches)
        return batches

    def close(self) -> None:
        """Stops the workers of all iterators."""
        for batches in list(self._iterators):
            batches.close()

    def _batches(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        iterator = iter(self._loader(requests))
        try:
            for batch in iterator:
                if isinstance(batch, DataError):
                    raise batch
                images, labels = batch
                yield self._normalisation(images), labels
        finally:
            _stop_workers(iterator)

    def _loader(self, requests: Iterable[Request]) -> DataLoader[Batch | DataError]:
        count = self.workers or 0
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=((each.training, each.epoch, each.indices.tolist()) for each in requests),
            num_workers=count,
            collate_fn=_identity,
            worker_init_fn=_end_with_parent,
            # An own generator: DataLoader draws a seed from the global generator otherwise.
            generator=torch.Generator(),
            multiprocessing_context=_forkserver() if count else None,
            prefetch_factor=_PREFETCH if count else None,
        )


def _forkserver() -> ForkServerContext:
    """A context that forks workers from a server process with all imports done.

    A fork of the training process could copy locks that its communication threads hold.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(worker: int) -> None:
    """Exits this worker when the training process exits.

    DataLoader watches the parent process id, which here is the fork server, and the fork server
    runs as long as it has workers.
    """
    del worker
    reader = multiprocessing.parent_process()
    if reader is not None:
        Thread(target=_exit_after, args=(reader.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _identity(batch: Any) -> Any:
    return batch


def _stop_workers(iterator: object) -> None:
    # DataLoader has no public method for this. Deleting the iterator is not enough: the traceback
    # of an exception that is being handled still refers to it.
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
