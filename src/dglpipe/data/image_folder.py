"""A folder of images: `train/<class>/*` and `val/<class>/*` or `test/<class>/*`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import torch

from dglpipe.config import ImageFolderConfig
from dglpipe.data.dataset import DataSet
from dglpipe.data.decode import SizesDifferError, decode, decode_all
from dglpipe.data.image_index import Listing, list_folder
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, given_channels
from dglpipe.data.streaming import Decoder, Streamed
from dglpipe.data.transforms import CIFAR, IMAGENET
from dglpipe.host import cores

_IMAGENET_SIDE = 224
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolderSource:
    """JPEG, PNG, GIF and WebP files, all of them read as RGB."""

    config: ImageFolderConfig
    seed: int
    wanted_channels: int | None = None
    loaders: int = 1
    """Of replicas on this machine, which share its cores."""

    @cached_property
    def info(self) -> DataInfo:
        """Lists the folder; decodes one image where its size decides about all.

        Raises:
            DataError: what `list_folder` refuses, or a first image that cannot be decoded.
        """
        listing = self._listing
        height, width = self._target
        return DataInfo(
            name=self.config.name,
            train=len(listing.train),
            test=len(listing.test),
            classes=listing.classes,
            channels=given_channels(self.config.name, 3, self.wanted_channels),
            height=height,
            width=width,
            fingerprint=fingerprint(listing.fingerprint(), height, width),
        )

    def load(self) -> DataSet:
        """Decodes all images if they are of one size and fit into memory.

        Otherwise, and with the `imagenet` transform, batches are decoded when asked for.

        Raises:
            DataError: an image that cannot be decoded.
        """
        reason = self._why_streamed()
        if not reason:
            try:
                return self._in_memory()
            except SizesDifferError as difference:
                reason = f"the images differ in size: {difference}"
        return self._streamed(reason)

    @cached_property
    def _listing(self) -> Listing:
        return list_folder(self.config.root)

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        """Height and width of the first training image."""
        height, width = decode(self._listing.path(True, 0)).shape[:2]
        return height, width

    @property
    def _target(self) -> tuple[int, int]:
        """Height and width of the images that a network gets."""
        side = self.config.image_size
        if side is None and self.config.transform == "imagenet":
            side = _IMAGENET_SIDE
        return self._first_size if side is None else (side, side)

    def _why_streamed(self) -> str:
        """Why the images cannot be held in memory; empty if they can."""
        if self.config.transform == "imagenet":
            return "data.transform=imagenet cuts parts out of the original images"
        height, width = self._target
        images = len(self._listing.train) + len(self._listing.test)
        needed = -(-images * height * width * 3 // 2**20)
        limit = self.config.memory_limit_mb
        return f"{needed} MiB are over data.memory_limit_mb={limit}" if needed > limit else ""

    def _in_memory(self) -> InMemory:
        train, test = (self._split(training) for training in (True, False))
        return InMemory(train, test, CIFAR, self.seed, self.config.augment)

    def _split(self, training: bool) -> Split:
        files = self._listing.train if training else self._listing.test
        images = decode_all(self._listing.paths(training), self._first_size, self._target)
        return Split(images, torch.tensor(files.labels))

    def _streamed(self, reason: str) -> Streamed:
        config = self.config
        share = max(1, cores() // self.loaders)
        workers = share if config.workers is None else config.workers
        _log.info("%s: decoding in %d processes: %s", config.name, workers, reason)
        decoder = Decoder(self._listing, config.transform, *self._target, self.seed, config.augment)
        return Streamed(decoder, IMAGENET if config.transform == "imagenet" else CIFAR, workers)
