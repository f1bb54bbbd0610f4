"""Synthetic images: one smooth random pattern per class, plus Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dglpipe.config import SyntheticConfig
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import DataInfo, fingerprint, resolve_channels
from dglpipe.data.transforms import Normalisation, with_channels
from dglpipe.seeds import derive

# 8 bits cover four standard deviations on each side of the mean.
_MIDDLE, _STD = 128, 32
_NORMALISATION = Normalisation((_MIDDLE / 255,), (_STD / 255,))
_CHUNK = 256


@dataclass(frozen=True)
class SyntheticSource:
    """Learnable images of any shape, determined by configuration and seed."""

    config: SyntheticConfig
    """Settings of the data set."""
    seed: int
    """Seed of the run."""
    wanted_channels: int | None = None
    """C, the channels that the network requires; None: any number."""

    @property
    def info(self) -> DataInfo:
        """Determined by configuration and seed; generates no images."""
        config = self.config
        return DataInfo(
            name=config.name,
            train=config.samples,
            test=self._test_size,
            classes=tuple(str(label) for label in range(config.classes)),
            channels=resolve_channels(config.name, config.channels, self.wanted_channels),
            height=config.image_size,
            width=config.image_size,
            fingerprint=fingerprint(config, self.seed),
            pixels=_NORMALISATION,
        )

    def load(self) -> InMemory:
        """Generates both splits from the same patterns."""
        patterns = self._patterns()
        train = self._split("train", self.config.samples, patterns)
        test = self._split("test", self._test_size, patterns)
        return InMemory(train, test, _NORMALISATION, self.seed)

    @property
    def _test_size(self) -> int:
        return max(1, self.config.samples // 4)

    def _generator(self, part: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, "synthetic", part))

    def _patterns(self) -> Tensor:
        """(N,H,W,C) float32 with mean square 1: 4x4 random values per channel, interpolated."""
        shape = (self.config.classes, self.config.channels, 4, 4)
        coarse = torch.randn(shape, generator=self._generator("patterns"))
        side = self.config.image_size
        smooth = interpolate(coarse, (side, side), mode="bilinear").permute(0, 2, 3, 1)
        return smooth / smooth.square().mean().sqrt()

    def _split(self, part: str, size: int, patterns: Tensor) -> Split:
        generator = self._generator(part)
        labels = torch.arange(size) % self.config.classes
        # In chunks, since the float32 images need four times the memory of the uint8 images.
        chunks = [self._images(patterns[some], generator) for some in torch.split(labels, _CHUNK)]
        channels = resolve_channels("synthetic", self.config.channels, self.wanted_channels)
        return Split(with_channels(torch.cat(chunks), channels), labels)

    def _images(self, patterns: Tensor, generator: torch.Generator) -> Tensor:
        """Adds noise to (B,H,W,C) float32, scales to variance 1 and quantises to uint8."""
        noise = torch.randn(patterns.shape, generator=generator) * self.config.noise
        signal: Tensor = (patterns + noise) / (1 + self.config.noise**2) ** 0.5
        return (signal * _STD + _MIDDLE).round().clamp(0, 255).to(torch.uint8)
