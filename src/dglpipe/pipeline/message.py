"""What travels over a link: a declared set of named tensors in one buffer of bytes.

    | header: phase, batch, rows | labels | (ensemble) | activations |

in this order, each part on a 64-byte boundary. A batch of fewer rows is a prefix of the
buffer. Gradients are not among the parts: nothing flows back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNMENT = 64
HEADER = "header"
LABELS = "labels"
ENSEMBLE = "ensemble"
ACTIVATIONS = "activations"


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a message, with a row for each sample."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    """Shape of one row."""
    strides: tuple[int, ...]
    """Strides of one row, in elements; rows are dense and lie one behind the other."""

    @property
    def row_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        return self.row_elements * self.dtype.itemsize

    def full_strides(self) -> tuple[int, ...]:
        """Strides of a batch."""
        return (self.row_elements, *self.strides)

    def normalise(self, batch: Tensor) -> Tensor:
        """`batch` (B, *shape), detached, in the dtype and strides of the wire.

        The same tensor when it is so already; the link gives its receiver the same values
        in the same strides, so both kinds of neighbour compute the same bits.
        """
        batch = batch.detach()
        if batch.dtype == self.dtype and batch.stride() == self.full_strides():
            return batch
        shape = (batch.shape[0], *self.shape)
        target = torch.empty_strided(
            shape, self.full_strides(), dtype=self.dtype, device=batch.device
        )
        return target.copy_(batch)


def contiguous_field(name: str, dtype: torch.dtype, shape: Sequence[int]) -> Field:
    """A field whose rows are laid out in the plain order of their dimensions."""
    strides = [math.prod(shape[at + 1 :]) for at in range(len(shape))]
    return Field(name, dtype, tuple(shape), tuple(strides))


def recorded_field(name: str, dtype: torch.dtype, batch: Tensor) -> Field:
    """The field that keeps the memory format of a real `batch` (B, ...).

    Rows that are not dense, or not one behind the other, become contiguous.
    """
    shape, strides = tuple(batch.shape[1:]), tuple(batch.stride()[1:])
    plain = contiguous_field(name, dtype, shape)
    if not _is_dense(shape, strides) or batch.stride(0) != plain.row_elements:
        return plain
    return Field(name, dtype, shape, strides)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a row fills its memory without gaps, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """Where each part of a message lies in a buffer for up to `rows` rows."""

    rows: int
    fields: tuple[Field, ...]

    def offsets(self) -> dict[str, int]:
        """First byte of each part behind the header, which is at 0."""
        offsets, at = {}, ALIGNMENT
        for item in self.fields:
            offsets[item.name] = at
            at = _aligned(at + self.rows * item.row_bytes)
        return offsets

    def nbytes(self, rows: int) -> int:
        """Bytes of a message of `rows` rows: up to the end of its last part."""
        last = self.fields[-1]
        return self.offsets()[last.name] + rows * last.row_bytes

    def views(self, buffer: Tensor, rows: int) -> dict[str, Tensor]:
        """The parts of a message of `rows` rows as tensors over `buffer` (uint8)."""
        views = {HEADER: buffer[: 3 * 8].view(torch.int64)}
        for item in self.fields:
            at = self.offsets()[item.name]
            flat = buffer[at : at + rows * item.row_bytes].view(item.dtype)
            views[item.name] = flat.as_strided((rows, *item.shape), item.full_strides())
        return views


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
