"""Images that are decoded while training goes on, in worker processes."""

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
from dglpipe.data.image_index import Listing
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

_AHEAD = 2
"""Batches a worker has ready or in the making."""

Batch = tuple[Tensor, Tensor]
Job = tuple[bool, int, list[int]]
"""A request as it travels: a tensor would take a file descriptor with it."""


@dataclass(frozen=True, eq=False)
class Decoder(Dataset["Batch | DataError"]):
    """Makes one batch of pixels; what a worker process holds.

    Its randomness is a function of (seed, epoch, position), so it does not matter which
    worker makes which batch, or how many there are.
    """

    listing: Listing
    transform: str
    """`cifar` or `imagenet`."""
    height: int
    width: int
    seed: int
    augment: bool

    def __getitem__(self, job: Job) -> Batch | DataError:
        """Images (B,H,W,3) uint8 and labels (B,) int64.

        An error comes back as a value: a raised one would reach the user with the
        loader's own text in front of it.
        """
        training, epoch, indices = job
        files = self.listing.train if training else self.listing.test
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
            return torch.stack(list(map(self._random_part, indices, draws)))
        images = torch.stack([self._plain(training, index) for index in indices])
        return crop_and_flip(images, uniform(self.seed, epoch, positions, CROP_DRAWS))

    def _plain(self, training: bool, index: int) -> Tensor:
        """(H,W,3): the whole image, or the middle that `imagenet` tests on."""
        image = decode(self.listing.path(training, index))
        if self.transform == "imagenet":
            return centre(image, self.height)
        return resize(image[None], self.height, self.width)[0]

    def _random_part(self, index: int, draws: list[float]) -> Tensor:
        """(H,W,3): RandomResizedCrop, and mirrored if the last number says so."""
        image = decode(self.listing.path(True, index))
        top, left, height, width = random_box(image.shape[0], image.shape[1], draws[:BOX_DRAWS])
        part = image[top : top + height, left : left + width]
        resized = resize(part[None], self.height, self.width)[0]
        return resized.flip(1) if draws[BOX_DRAWS] < 0.5 else resized


class Streamed:
    """Answers requests from files, with worker processes that decode ahead.

    Args:
        decoder: makes the pixels of a batch.
        normalisation: applied in the calling process: bytes are a quarter of the traffic.
        workers: processes; 0 decodes in the calling one.
    """

    def __init__(self, decoder: Decoder, normalisation: Normalisation, workers: int) -> None:
        self._decoder = decoder
        self._normalisation = normalisation
        self.workers: int | None = workers
        self._open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Images (B,C,H,W) float32, channels last, and labels (B,) int64, a request each.

        The workers live as long as the iterator: until its end, its `close()` or that of
        the data set.

        Raises:
            DataError: a file that cannot be decoded, at the batch that needs it.
        """
        answers = self._answer(requests)
        self._open.add(answers)
        return answers

    def close(self) -> None:
        """Ends the workers of all iterators."""
        for answers in list(self._open):
            answers.close()

    def _answer(self, requests: Iterable[Request]) -> Generator[Batch, None, None]:
        iterator = iter(self._loader(requests))
        try:
            for answer in iterator:
                if isinstance(answer, DataError):
                    raise answer
                images, labels = answer
                yield self._normalisation(images), labels
        finally:
            _end_workers(iterator)

    def _loader(self, requests: Iterable[Request]) -> DataLoader[Batch | DataError]:
        count = self.workers or 0
        return DataLoader(
            self._decoder,
            batch_size=None,
            sampler=((each.training, each.epoch, each.indices.tolist()) for each in requests),
            num_workers=count,
            collate_fn=_unchanged,
            worker_init_fn=_end_with_parent,
            # Without one of its own, the loader would draw from the global generator.
            generator=torch.Generator(),
            multiprocessing_context=_processes() if count else None,
            prefetch_factor=_AHEAD if count else None,
        )


def _processes() -> ForkServerContext:
    """Makes processes from a clean one that has imported all they need.

    A plain fork would copy locks that threads of the process group may be holding.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(worker: int) -> None:
    """Ends this worker when the process that reads from it has died.

    The loader's own watch looks at the parent's number: here that is the clean process,
    which in turn lives for as long as it has workers.
    """
    reader = multiprocessing.parent_process()
    if reader is not None:
        Thread(target=_exit_after, args=(reader.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _unchanged(answer: Any) -> Any:
    return answer


def _end_workers(iterator: object) -> None:
    # There is no public way. Dropping the last reference would do as well, but while an
    # error is being handled its traceback holds one.
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
