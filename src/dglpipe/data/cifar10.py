"""CIFAR-10, read by torchvision."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from dglpipe.config import Cifar10Config
from dglpipe.data.augmentation import augmentation
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, resolve_channels
from dglpipe.data.transforms import CIFAR, resize
from dglpipe.errors import DataError

# fmt: off
_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
_MAX_NAMES = 8
"""File names that an error lists."""


@dataclass(frozen=True)
class Cifar10Source:
    """50,000 training and 10,000 test images of ten classes, 32x32 pixels, 3 channels."""

    config: Cifar10Config
    """Settings of the data set."""
    seed: int
    """Seed of the run."""
    wanted_channels: int | None = None
    """C, the channels that the network requires; None: any number."""

    @property
    def info(self) -> DataInfo:
        """Constant, except for the image size: torchvision accepts only the published files.

        Raises:
            ConfigError: the images are too small for the crops.
            DataError: the files are missing and `download` is false.
        """
        if not self.config.download:
            self._require_files()
        side = self.config.image_size
        augmentation(self.config, side, side)
        return DataInfo(
            name=self.config.name,
            train=50_000,
            test=10_000,
            classes=_CLASSES,
            channels=resolve_channels(self.config.name, 3, self.wanted_channels),
            height=side,
            width=side,
            fingerprint=fingerprint(self.config.name, side, CIFAR10.tgz_md5),
            pixels=CIFAR,
        )

    def load(self) -> InMemory:
        """Loads both splits into memory; downloads them first if `download` is true.

        Raises:
            DataError: the files are missing or damaged, or the download fails.
        """
        if not self.config.download:
            self._require_files()
        with _download_lock(self._root, self.config.download):
            train, test = self._split(train=True), self._split(train=False)
        side = self.config.image_size
        own = augmentation(self.config, side, side)
        return InMemory(train, test, CIFAR, self.seed, own)

    @property
    def _root(self) -> Path:
        return Path(self.config.root).expanduser()

    def _require_files(self) -> None:
        folder = self._root / CIFAR10.base_folder
        if not all((folder / name).is_file() for name, _ in CIFAR10.train_list + CIFAR10.test_list):
            raise DataError(
                f"data.root={self.config.root}: contains no CIFAR-10; expected the files of "
                f"{CIFAR10.base_folder}/, {_contents(self._root)}. Give the folder that contains "
                f"{CIFAR10.base_folder}, or download it with data.download=true"
            )

    def _split(self, train: bool) -> Split:
        try:
            files = CIFAR10(str(self._root), train=train, download=self.config.download)
        except (OSError, RuntimeError) as error:
            todo = "Check the network" if self.config.download else "Set data.download=true"
            raise DataError(
                f"data.root={self.config.root}: cannot read CIFAR-10 ({error}). {todo}, or "
                f"remove {self._root / CIFAR10.base_folder} and put the published files there"
            ) from error
        side = self.config.image_size
        images = torch.from_numpy(files.data).contiguous()
        return Split(resize(images, side, side), torch.tensor(files.targets))


def _contents(root: Path) -> str:
    if not root.is_dir():
        return f"but there is no folder {root.absolute()}"
    names = sorted(path.name for path in root.iterdir())
    more = ", ..." if len(names) > _MAX_NAMES else ""
    return f"found {', '.join(names[:_MAX_NAMES]) or 'nothing'}{more}"


@contextmanager
def _download_lock(root: Path, download: bool) -> Iterator[None]:
    """Lets only one process download at a time: replicas would write to the same archive."""
    if not download:
        yield
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".download.lock").open("w")
    except OSError as error:
        raise DataError(
            f"data.root={root}: cannot be written ({error}); give a writable folder"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
