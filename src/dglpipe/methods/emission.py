"""The data from which a stage fills the extra tensors of its message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Emission:
    """The data of one training batch from which a stage fills the extra tensors of its message.

    Attributes:
        stage: index j of the stage.
        inputs: inputs of the stage, (B, ...); the images in stage 0.
        features: output of the stage, (B, ...), detached.
        labels: (B,), int64.
        extras: extra tensors of the received message by name; empty in stage 0.
        names: the extra tensors to fill.
    """

    stage: int
    inputs: Tensor
    features: Tensor
    labels: Tensor
    extras: Mapping[str, Tensor]
    names: tuple[str, ...] = ()
