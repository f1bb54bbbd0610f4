"""A message: a declared set of named tensors in one buffer of bytes.

    | header: phase, batch, rows | labels | (ensemble) | activations | (extras) |

The parts have this order, and each part begins on a 64-byte boundary. A batch of fewer rows is a
prefix of the buffer. The method of a run declares the tensors, each with a direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dglpipe.data.batch_schedule import Phase
from dglpipe.monitoring.metrics import ENSEMBLE as ENSEMBLE

ALIGNMENT = 64
HEADER = "header"
LABELS = "labels"
ACTIVATIONS = "activations"


class Direction(Enum):
    """The direction of a message between neighbouring stages."""

    UP = "up"
    """From stage j to stage j + 1."""
    DOWN = "down"
    """From stage j + 1 to stage j."""


@dataclass(frozen=True, slots=True)
class Field:
    """One named tensor of a message, with a row for each sample, or one row in all.

    Attributes:
        shape: shape of one row.
        strides: strides of one row, in elements. Rows are dense and contiguous.
        direction: whether the tensor goes up or down the chain.
        phases: the phases in which the tensor travels.
        every: None: the tensor has a row for each sample. n: it has one row, and its messages,
            which go down the chain, travel after every n-th step.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    direction: Direction = Direction.UP
    phases: tuple[Phase, ...] = tuple(Phase)
    every: int | None = None

    def count(self, samples: int) -> int:
        """Number of rows in a message about a batch of `samples`."""
        return samples if self.every is None else 1

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
        """Detaches `batch` (B, *shape) and converts it to the dtype and strides of the link.

        A stage in the same process receives this tensor, and a stage in another process receives
        the same values in the same strides, so both compute the same bits. Returns `batch`
        itself, detached, if no conversion is necessary.
        """
        batch = batch.detach()
        if batch.dtype == self.dtype and batch.stride() == self.full_strides():
            return batch
        shape = (batch.shape[0], *self.shape)
        target = torch.empty_strided(
            shape, self.full_strides(), dtype=self.dtype, device=batch.device
        )
        return target.copy_(batch)


def contiguous_field(
    name: str,
    dtype: torch.dtype,
    shape: Sequence[int],
    direction: Direction = Direction.UP,
    phases: Iterable[Phase] = Phase,
) -> Field:
    """A field whose rows are contiguous in the order of their dimensions.

    Args:
        shape: shape of one row.
        phases: the phases in which the tensor travels.
    """
    strides = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
    return Field(name, dtype, tuple(shape), strides, direction, tuple(phases))


def recorded_field(name: str, dtype: torch.dtype, batch: Tensor) -> Field:
    """A field with the memory format of `batch` (B, ...).

    The field is contiguous if the rows of `batch` are not dense or not adjacent.
    """
    shape, strides = tuple(batch.shape[1:]), tuple(batch.stride()[1:])
    plain = contiguous_field(name, dtype, shape)
    if not _is_dense(shape, strides) or batch.stride(0) != plain.row_elements:
        return plain
    return Field(name, dtype, shape, strides)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a row has no gaps in memory, for any order of its dimensions."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """Positions of the parts of a message in a buffer for up to `rows` samples."""

    rows: int
    fields: tuple[Field, ...]

    def offsets(self) -> dict[str, int]:
        """First byte of each part after the header, which is at 0."""
        offsets, at = {}, ALIGNMENT
        for item in self.fields:
            offsets[item.name] = at
            at = _aligned(at + item.count(self.rows) * item.row_bytes)
        return offsets

    def nbytes(self, rows: int) -> int:
        """Bytes of a message about `rows` samples, up to the end of the last part."""
        last = self.fields[-1]
        return self.offsets()[last.name] + last.count(rows) * last.row_bytes

    def views(self, buffer: Tensor, rows: int) -> dict[str, Tensor]:
        """The parts of a message about `rows` samples as tensors over `buffer` (uint8)."""
        views = {HEADER: buffer[: 3 * 8].view(torch.int64)}
        for item in self.fields:
            at = self.offsets()[item.name]
            count = item.count(rows)
            flat = buffer[at : at + count * item.row_bytes].view(item.dtype)
            views[item.name] = flat.as_strided((count, *item.shape), item.full_strides())
        return views


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


MessageFormats = Mapping[Phase, MessageFormat]
"""The format of the messages of a link in each phase."""


def message_formats(
    fields: Iterable[Field], rows: Mapping[Phase, int], direction: Direction = Direction.UP
) -> dict[Phase, MessageFormat]:
    """The formats of the messages that carry `fields` in one direction of a link, by phase; without
    phases in which nothing travels.

    Args:
        rows: phase -> rows of the largest batch.
    """
    own = [field for field in fields if field.direction is direction]
    by_phase = {phase: tuple(one for one in own if phase in one.phases) for phase in Phase}
    return {phase: MessageFormat(rows[phase], found) for phase, found in by_phase.items() if found}
