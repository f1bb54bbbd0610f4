"""The precisions by name: dtype of activations and whether autocast is on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Precision:
    """Number format of forward and backward; weights are fp32.

    Attributes:
        dtype: dtype of the activations on a link.
        autocast: whether forward runs under autocast to `dtype`.
        scaled: whether the loss is scaled, so that small gradients do not become 0.
    """

    name: str
    dtype: torch.dtype
    autocast: bool
    scaled: bool = False

    @property
    def item_bytes(self) -> int:
        """Bytes of one activation, on a link or saved for backward."""
        return self.dtype.itemsize


PRECISIONS = {
    one.name: one
    for one in (
        Precision("fp32", torch.float32, autocast=False),
        Precision("bf16", torch.bfloat16, autocast=True),
        Precision("fp16", torch.float16, autocast=True, scaled=True),
    )
}
