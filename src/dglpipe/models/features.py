"""What a stage hands on, as a head reads it: maps (B,C,H,W) or vectors (B,C).

| a row of the link | head reads |
|---|---|
| (C,H,W) | as it is |
| (H,W,C), channels last | (C,H,W) |
| (T,C) or (C,T), tokens | (C), their mean |
| (C) | as it is |

Which dimension holds the channels cannot be told from the shape: it is the one that the next
operation with weights consumes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dglpipe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Features:
    """One row of what a stage hands on.

    Attributes:
        shape: without the dimension of the batch.
        channels_at: which dimension of `shape` holds the channels.
    """

    shape: tuple[int, ...]
    channels_at: int

    @property
    def channels(self) -> int:
        """C"""
        return self.shape[self.channels_at]

    @property
    def side(self) -> tuple[int, int] | None:
        """(H, W) of maps; None of tokens and vectors."""
        rest = self._rest()
        return (rest[0], rest[1]) if len(rest) == 2 else None

    def adapter(self) -> nn.Module | None:
        """Makes (B,C,H,W) or (B,C) of them; None where they are that already.

        Raises:
            ConfigError: more dimensions than a map has.
        """
        if len(self.shape) > 3:
            allowed = "cuts that leave (C,H,W), (H,W,C), (T,C) or (C) a row"
            raise ConfigError("pipeline.split", f"features {self.shape}", allowed)
        if len(self.shape) == 2:
            return TokenMean(1 + 1 - self.channels_at)
        if len(self.shape) == 3 and self.channels_at != 0:
            return ChannelsFirst(1 + self.channels_at)
        return None

    def _rest(self) -> tuple[int, ...]:
        return self.shape[: self.channels_at] + self.shape[self.channels_at + 1 :]


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
