"""How the batches of a replay buffer are kept: where, and in which number format."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dglpipe.config import AsyncConfig
from dglpipe.pipeline.device import Device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """What a stage learns from."""

    features: Tensor
    """(rows, ...)"""
    labels: Tensor
    """(rows,), int64"""

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.labels.nbytes


class StorageFormat:
    """Takes batches away and brings them back, as `method.storage` and `storage_precision` say.

    Args:
        dtype: of features as a stage takes them.
    """

    def __init__(self, method: AsyncConfig, device: Device, dtype: torch.dtype) -> None:
        self._device = device.torch_device
        self._dtype = dtype
        self._kept_in = DTYPES.get(method.storage_precision or "", dtype)
        self._away = method.storage == "host" and device.is_cuda

    @property
    def changes(self) -> bool:
        """Whether a batch that is kept is another one than the one that came."""
        return self._away or self._kept_in != self._dtype

    def keep(self, batch: Batch) -> Batch:
        """The batch as it is kept; itself where nothing changes."""
        if not self.changes:
            return batch
        return Batch(self._stored(batch.features, self._kept_in), self._stored(batch.labels))

    def restore(self, batch: Batch) -> Batch:
        """A batch that was kept, wherever it lies now, where batches are kept."""
        return Batch(self._stored(batch.features, self._kept_in), self._stored(batch.labels))

    def bring(self, batch: Batch) -> Batch:
        """A batch that was kept, as a stage takes it."""
        if not self.changes:
            return batch
        features = batch.features.to(self._device, non_blocking=True).to(self._dtype)
        return Batch(features, batch.labels.to(self._device, non_blocking=True))

    def _stored(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        kept = torch.empty_strided(
            tensor.shape,
            tensor.stride(),
            dtype=dtype or tensor.dtype,
            device="cpu" if self._away else self._device,
            pin_memory=self._away,
        )
        return kept.copy_(tensor, non_blocking=self._away)


class BatchStore:
    """The batches of a buffer in one process, by number."""

    def __init__(self, keeping: StorageFormat) -> None:
        self._keeping = keeping
        self._batches: dict[int, Batch] = {}
        self.most_bytes = 0

    def put(self, number: int, batch: Batch, gone: int | None) -> None:
        """Keeps a batch, in the place of batch `gone`."""
        if gone is not None:
            del self._batches[gone]
        self._batches[number] = self._keeping.keep(batch)
        size = sum(one.nbytes for one in self._batches.values())
        self.most_bytes = max(self.most_bytes, size)

    def state(self) -> dict[str, Any]:
        """What `restore` puts back: batches and numbers."""
        batches = {number: tuple(batch) for number, batch in self._batches.items()}
        return {"batches": batches, "most_bytes": self.most_bytes}

    def restore(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        self.most_bytes = state["most_bytes"]
        self._batches = {
            number: self._keeping.restore(Batch(*batch))
            for number, batch in state["batches"].items()
        }

    def take(self, number: int) -> Batch:
        """Batch `number`, which stays."""
        return self._keeping.bring(self._batches[number])
