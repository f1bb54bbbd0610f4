"""Storage of the batches of a replay buffer: device and number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dglpipe.config import AsyncConfig
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import NO_EXTRAS
from dglpipe.pipeline.precision import PRECISIONS


class Batch(NamedTuple):
    """One training batch of a stage."""

    features: Tensor
    """(rows, ...)"""
    labels: Tensor
    """(rows,), int64"""
    extras: Mapping[str, Tensor] = NO_EXTRAS
    """Extra tensors of the message by name, each (rows, ...)."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(one.nbytes for one in (self.features, self.labels, *self.extras.values()))


class StorageFormat:
    """Converts batches to and from their storage dtype and device (`method.storage`,
    `method.storage_precision`).

    Args:
        dtype: dtype of the features that the stage reads.
    """

    def __init__(self, method: AsyncConfig, device: Device, dtype: torch.dtype) -> None:
        self._device = device.torch_device
        self._dtype = dtype
        precision = method.storage_precision
        self._stored_dtype = dtype if precision is None else PRECISIONS[precision].dtype
        self._on_host = method.storage == "host" and device.is_cuda

    @property
    def converts(self) -> bool:
        """Whether a stored batch is a copy of the batch that arrived."""
        return self._on_host or self._stored_dtype != self._dtype

    def store(self, batch: Batch) -> Batch:
        """The batch in storage format; `batch` itself if no conversion is necessary."""
        return self.copy(batch) if self.converts else batch

    def copy(self, batch: Batch) -> Batch:
        """A copy of `batch`, from any device, in storage format."""
        return Batch(
            self._stored(batch.features, self._stored_dtype),
            self._stored(batch.labels),
            {name: self._stored(tensor) for name, tensor in batch.extras.items()},
        )

    def load(self, batch: Batch) -> Batch:
        """Converts a stored batch to the dtype and device of the stage."""
        if not self.converts:
            return batch
        features = self._loaded(batch.features).to(self._dtype)
        extras = {name: self._loaded(tensor) for name, tensor in batch.extras.items()}
        return Batch(features, self._loaded(batch.labels), extras)

    def _loaded(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def _stored(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        stored = torch.empty_strided(
            tensor.shape,
            tensor.stride(),
            dtype=dtype or tensor.dtype,
            device="cpu" if self._on_host else self._device,
            pin_memory=self._on_host,
        )
        return stored.copy_(tensor, non_blocking=self._on_host)


class BatchStore:
    """The stored batches of a buffer, by number, in a simulation."""

    def __init__(self, storage: StorageFormat) -> None:
        self._storage = storage
        self._batches: dict[int, Batch] = {}
        self.most_bytes = 0

    def put(self, number: int, batch: Batch, replaced: int | None) -> None:
        """Stores a batch and deletes batch `replaced`, if not None."""
        if replaced is not None:
            del self._batches[replaced]
        self._batches[number] = self._storage.store(batch)
        size = sum(one.nbytes for one in self._batches.values())
        self.most_bytes = max(self.most_bytes, size)

    def take(self, number: int) -> Batch:
        """Batch `number`; the batch stays in the store."""
        return self._storage.load(self._batches[number])

    def state(self) -> dict[str, Any]:
        """The stored batches by number, for a checkpoint."""
        batches = {
            number: (batch.features, batch.labels, dict(batch.extras))
            for number, batch in self._batches.items()
        }
        return {"batches": batches, "most_bytes": self.most_bytes}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a result of `state`."""
        self.most_bytes = state["most_bytes"]
        self._batches = {
            number: self._storage.copy(Batch(*batch)) for number, batch in state["batches"].items()
        }
