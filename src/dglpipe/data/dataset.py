"""The two faces of a data set: cheap for every process, expensive for one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from dglpipe.data.info import DataInfo


class DataSet(Protocol):
    """Images that can be asked for, batch by batch."""

    @property
    def workers(self) -> int | None:
        """Processes that make batches while the caller does something else (`data.workers`);
        None where there are none by its nature: the caller makes each batch when it takes it."""
        ...

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """Answers `requests` in their order; they may be taken some batches ahead.

        Yields:
            images (B,C,H,W) float32, channels last, and labels (B,) int64.
        """
        ...

    def close(self) -> None:
        """Ends what is still being fetched; iterators of `batches` end with it."""
        ...


class DataSource(Protocol):
    """A data set that has been found, and not yet been read."""

    @property
    def info(self) -> DataInfo:
        """Cheap: no more than a listing and one image.

        Raises:
            DataError: missing, empty or inconsistent.
        """
        ...

    def load(self) -> DataSet:
        """Reads the images; only a process that feeds a chain should call it.

        Raises:
            DataError: an image or a label that cannot be used.
        """
        ...


class Request(NamedTuple):
    """One batch, by the positions of its images in the split."""

    training: bool
    """The training split, augmented where the data set does that; else the test split."""
    epoch: int
    """Decides, with the seed and an image's position, how that image is augmented."""
    indices: Tensor
    """(B,) int64"""
