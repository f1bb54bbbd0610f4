"""A folder of images: `train/<class>/*` and `val/<class>/*` or `test/<class>/*`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import torch

from dglpipe.config import ImageFolderConfig
from dglpipe.data.augmentation import augmentation
from dglpipe.data.dataset import DataSet
from dglpipe.data.decode import SizesDifferError, decode, decode_all
from dglpipe.data.image_index import ImageIndex, list_folder
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, resolve_channels
from dglpipe.data.streaming import Decoder, Streamed
from dglpipe.data.transforms import CIFAR, IMAGENET, Normalisation
from dglpipe.host import cores

_IMAGENET_SIDE = 224
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolderSource:
    """JPEG, PNG, GIF and WebP files, decoded as RGB."""

    config: ImageFolderConfig
    """Settings of the data set."""
    seed: int
    """Seed of the run."""
    wanted_channels: int | None = None
    """C, the channels that the network requires; None: any number."""
    loaders: int = 1
    """Replicas on this machine that load data; they share its cores."""
    timeout_s: float = 600.0
    """Seconds in which loading processes have to start; see `LoadingProcesses`."""

    @cached_property
    def info(self) -> DataInfo:
        """Lists the folder; decodes the first image if `image_size` is None.

        Raises:
            ConfigError: as `augmentation`.
            DataError: as `list_folder`, or the first image cannot be decoded.
        """
        index = self._index
        height, width = self._target
        augmentation(self.config, height, width)
        return DataInfo(
            name=self.config.name,
            train=len(index.train),
            test=len(index.test),
            classes=index.classes,
            channels=resolve_channels(self.config.name, 3, self.wanted_channels),
            height=height,
            width=width,
            fingerprint=fingerprint(index.fingerprint(), height, width),
            pixels=self._normalisation,
        )

    @property
    def _normalisation(self) -> Normalisation:
        return IMAGENET if self.config.transform == "imagenet" else CIFAR

    def load(self) -> DataSet:
        """Decodes all images into memory if they have the same size and fit.

        Otherwise, and with `transform=imagenet`, images are decoded batch by batch in training.

        Raises:
            DataError: an image cannot be decoded.
        """
        reason = self._streaming_reason()
        if not reason:
            try:
                train, test = (self._split(training) for training in (True, False))
                own = augmentation(self.config, *self._target)
                return InMemory(train, test, self._normalisation, self.seed, own)
            except SizesDifferError as difference:
                reason = f"the images differ in size: {difference}"
        return self._streamed(reason)

    @cached_property
    def _index(self) -> ImageIndex:
        return list_folder(self.config.root)

    @cached_property
    def _first_size(self) -> tuple[int, int]:
        """Height and width of the first training image file."""
        height, width = decode(self._index.path(True, 0)).shape[:2]
        return height, width

    @property
    def _target(self) -> tuple[int, int]:
        """Height and width of the images in a batch."""
        side = self.config.image_size
        if side is None and self.config.transform == "imagenet":
            side = _IMAGENET_SIDE
        return self._first_size if side is None else (side, side)

    def _streaming_reason(self) -> str:
        """Why the images cannot be kept in memory; empty if they can."""
        if self.config.transform == "imagenet":
            return "data.transform=imagenet crops the original images"
        height, width = self._target
        images = len(self._index.train) + len(self._index.test)
        needed = -(-images * height * width * 3 // 2**20)
        limit = self.config.memory_limit_mb
        return f"{needed} MiB exceed data.memory_limit_mb={limit}" if needed > limit else ""

    def _split(self, training: bool) -> Split:
        files = self._index.train if training else self._index.test
        images = decode_all(self._index.paths(training), self._first_size, self._target)
        return Split(images, torch.tensor(files.labels))

    def _streamed(self, reason: str) -> Streamed:
        config = self.config
        share = max(1, cores() // self.loaders)
        workers = share if config.workers is None else config.workers
        _log.info("%s: decoding in %d processes: %s", config.name, workers, reason)
        height, width = self._target
        own = augmentation(config, height, width)
        decoder = Decoder(self._index, config.transform, height, width, self.seed, own)
        return Streamed(decoder, self._normalisation, workers, self.timeout_s)
