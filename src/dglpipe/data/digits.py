"""The embedded data set: handwritten digits.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0; the 1,797 images
of its test file, in the form of scikit-learn's `load_digits()`. `digits.safetensors` holds
them unchanged, split by `train_test_split(images, target, test_size=360, stratify=target,
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
from dglpipe.data.info import DataInfo, fingerprint, given_channels
from dglpipe.data.transforms import Normalisation, resize, with_channels

_FILE = Path(__file__).with_name("digits.safetensors")
_TRAIN, _TEST = 1437, 360
# Of the training images, pixels from 0 to 1.
_NORMALISATION = Normalisation((0.3054,), (0.3760,))


@dataclass(frozen=True)
class DigitsSource:
    """8x8 images of ten classes, 1,437 to train and 360 to test; never augmented."""

    config: DigitsConfig
    seed: int
    wanted_channels: int | None = None

    @property
    def info(self) -> DataInfo:
        """Constant but for the side of the images and the channels."""
        side = self.config.image_size
        return DataInfo(
            name=self.config.name,
            train=_TRAIN,
            test=_TEST,
            classes=tuple("0123456789"),
            channels=given_channels(self.config.name, 1, self.wanted_channels),
            height=side,
            width=side,
            fingerprint=fingerprint(self.config.name, side, _FILE.read_bytes()),
        )

    def load(self) -> InMemory:
        """Reads both splits into memory."""
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
        """(n,8,8) with values 0..16 to (n,H,W,C) with values 0..255."""
        stretched = ((images.to(torch.int32) * 255 + 8) // 16).to(torch.uint8)
        channels = given_channels(self.config.name, 1, self.wanted_channels)
        side = self.config.image_size
        return with_channels(resize(stretched[..., None], side, side), channels)
