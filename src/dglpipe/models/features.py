"""Features of a stage, and the maps (B,C,H,W) or vectors (B,C) that a head reads from them.

| row of the features | row that the head reads |
|---|---|
| (C,H,W) | (C,H,W) |
| (H,W,C), channels last | (C,H,W) |
| (T,C) or (C,T), tokens | (C), the mean over the tokens |
| (C) | (C) |

The shape alone does not say which dimension holds the channels. It is the dimension that the
next operation with weights reads (`partition.channels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dglpipe.config import AnyHeadConfig
from dglpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Features:
    """One row of what the auxiliary modules of a stage read: its output, or the map before the pool
    at its end.

    Attributes:
        shape: shape of one row, without the batch dimension.
        channels_at: dimension of `shape` that holds the channels.
    """

    shape: tuple[int, ...]
    channels_at: int

    @property
    def channels(self) -> int:
        """C"""
        return self.shape[self.channels_at]

    @property
    def side(self) -> tuple[int, int] | None:
        """(H, W) of maps; None for tokens and vectors."""
        rest = self.shape[: self.channels_at] + self.shape[self.channels_at + 1 :]
        return (rest[0], rest[1]) if len(rest) == 2 else None

    def adapter(self) -> nn.Module | None:
        """Module that converts a batch to (B,C,H,W) or (B,C); None if no conversion is necessary.

        Raises:
            ConfigError: a row has more than three dimensions.
        """
        if len(self.shape) > 3:
            allowed = "cuts at rows of shape (C,H,W), (H,W,C), (T,C) or (C)"
            raise ConfigError("pipeline.split", f"features {self.shape}", allowed)
        if len(self.shape) == 2:
            return TokenMean(2 - self.channels_at)
        if len(self.shape) == 3 and self.channels_at != 0:
            return ChannelsFirst(1 + self.channels_at)
        return None


@dataclass(frozen=True, slots=True)
class Layer:
    """The form of a segment.

    Attributes:
        channels: channels of its output.
        kind: `plain`, or `basic` or `bottleneck` for a residual block. A bottleneck has a
            convolution with a quarter of the channels of its output.
    """

    channels: int
    kind: str


@dataclass(frozen=True, slots=True)
class SegmentForm:
    """Sizes of the first segment above a cut, without the classifier of the network.

    Attributes:
        output: what the segment computes.
        parameters: path -> elements of its parameters, in order.
    """

    output: Features
    parameters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Following:
    """The first segment above a cut, without the classifier of the network.

    Attributes:
        segment: the module, which shares its weights with the network.
    """

    segment: nn.Module
    form: SegmentForm


@dataclass(frozen=True, slots=True)
class Boundary:
    """The cut above a stage, as the input of builders of auxiliary modules.

    Attributes:
        features: what the auxiliary modules of the stage below the cut read.
        classes: N.
        image_shape: (C,H,W) of the images.
        head: head settings of the stage below the cut.
        index: first segment above the cut.
        width: channels of the network's last map, which its classifier reads; None if it reads no
            map.
        stage: j of the stage below the cut.
        stages: K.
        above: the segments above the cut, in order; the last one as its map, without the
            classifier.
        following: the first of these segments, with its weights before training; None unless the
            auxiliary modules of the stage copy it (`Method.copies_following`).
    """

    features: Features
    classes: int
    image_shape: tuple[int, int, int]
    head: AnyHeadConfig
    index: int
    width: int | None
    stage: int
    stages: int
    above: tuple[Layer, ...]
    following: Following | None = None


class ChannelsFirst(nn.Module):
    """(B,H,W,C) -> (B,C,H,W), a view."""

    def __init__(self, channels_at: int) -> None:
        super().__init__()
        self.channels_at = channels_at

    def forward(self, features: Tensor) -> Tensor:
        return features.movedim(self.channels_at, 1)


class TokenMean(nn.Module):
    """(B,T,C) -> (B,C), the mean over the tokens."""

    def __init__(self, tokens_at: int) -> None:
        super().__init__()
        self.tokens_at = tokens_at

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=self.tokens_at)
