"""The embedded data set of handwritten digits.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0: the 1,797 images of the
test file, in the form of `load_digits()` of scikit-learn. `digits.safetensors` contains the images
unchanged, split by `train_test_split(images, target, test_size=360, stratify=target,
random_state=0)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dglpipe.config import DigitsConfig
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, resolve_channels
from dglpipe.data.transforms import Normalisation, resize, with_channels

_FILE = Path(__file__).with_name("digits.safetensors")
_TRAIN, _TEST = 1437, 360
# Mean and standard deviation of the pixels of the training images, scaled to [0, 1].
_NORMALISATION = Normalisation((0.3054,), (0.3760,))


@dataclass(frozen=True)
class DigitsSource:
    """1,437 training and 360 test images of ten classes, 8x8 pixels; no augmentation.

    `seed` is unused: every run has the same images.
    """

    config: DigitsConfig
    """Settings of the data set."""
    seed: int
    """Seed of the run."""
    wanted_channels: int | None = None
    """C, the channels that the network requires; None: any number."""

    @property
    def info(self) -> DataInfo:
        """Constant, except for the image size and the channels."""
        side = self.config.image_size
        return DataInfo(
            name=self.config.name,
            train=_TRAIN,
            test=_TEST,
            classes=tuple("0123456789"),
            channels=resolve_channels(self.config.name, 1, self.wanted_channels),
            height=side,
            width=side,
            fingerprint=fingerprint(self.config.name, side, _FILE.read_bytes()),
            pixels=_NORMALISATION,
        )

    def load(self) -> InMemory:
        """Loads both splits into memory."""
        tensors = load_file(_FILE)
        train, test = (
            Split(
                self._pixels(tensors[f"{split}_images"]),
                tensors[f"{split}_labels"].to(torch.int64),
            )
            for split in ("train", "test")
        )
        return InMemory(train, test, _NORMALISATION, self.seed)

    def _pixels(self, images: Tensor) -> Tensor:
        """Scales (n,8,8) uint8 in 0..16 to 0..255, and resizes to (n,H,W,C) uint8."""
        stretched = ((images.to(torch.int32) * 255 + 8) // 16).to(torch.uint8)
        channels = resolve_channels(self.config.name, 1, self.wanted_channels)
        side = self.config.image_size
        return with_channels(resize(stretched[..., None], side, side), channels)
