"""The interface of data sets: a source that every process opens, and the images that one loads.

Every process of a run reads `DataSource.info`. Only the processes that run stage 0 call
`DataSource.load` and request batches from the `DataSet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from dglpipe.data.info import DataInfo


class DataSet(Protocol):
    """The images of a data set, in batches."""

    @property
    def workers(self) -> int | None:
        """Processes that prepare batches in the background (`data.workers`); None: the data set
        does not use any, and the calling process prepares each batch when it requests it."""
        ...

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields one batch per request, in order; may consume requests ahead of the batches.

        Yields:
            images (B,C,H,W) float32, channels last, and labels (B,) int64.
        """
        ...

    def close(self) -> None:
        """Stops all background work; ends all iterators of `batches`."""
        ...


class DataSource(Protocol):
    """A data set that is opened but not loaded."""

    @property
    def info(self) -> DataInfo:
        """Sizes, classes and image shape; reads at most the list of files and one image.

        Raises:
            DataError: the data set is missing, empty or inconsistent.
        """
        ...

    def load(self) -> DataSet:
        """Loads the images; called only by the processes that run stage 0.

        Raises:
            DataError: an image or a label is invalid.
        """
        ...


class Request(NamedTuple):
    """A request for one batch, by the indices of its images in the split."""

    training: bool
    """True: training split, augmented if the data set augments images; False: test split."""
    epoch: int
    """Epoch, from 1; determines the augmentation, together with the seed and the index."""
    indices: Tensor
    """(B,) int64, from 0."""
