"""What a stage of any cut needs in memory, and whether that is within a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dglpipe.balance import Fits, least
from dglpipe.config import OptimizerConfig, SgdConfig
from dglpipe.errors import ConfigError
from dglpipe.flops import Kept, kept_bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment, or a head, with its own memory in bytes.

    Attributes:
        weights: parameters, their gradients, and buffers.
        optimizer: the state that the optimizer keeps.
        kept: a sample's tensors from forward to backward.
    """

    weights: int
    optimizer: int
    kept: Kept


@dataclass(frozen=True, slots=True)
class Needs:
    """The memory of every stage that a network can be cut into.

    Attributes:
        segments: in order.
        heads: of the cut in front of each segment but segment 0.
        links: of the same cuts, the bytes of a row that cross.
        rows: of a step on one replica.
        received: messages, of the bytes of a link, for which there is memory above it;
            `sent` below it.
        item_bytes: of one number of an activation, 4 in full precision.
    """

    segments: tuple[Piece, ...]
    heads: tuple[Piece, ...]
    links: tuple[int, ...]
    rows: int
    received: float
    sent: int
    item_bytes: int

    def stage(self, first: int, end: int) -> int:
        """Bytes of a stage of segments `first` to `end` - 1, with its head and the buffers of
        its links; a process starts at some hundred megabytes of libraries besides."""
        pieces = self.segments[first:end]
        fixed = sum(one.weights + one.optimizer for one in pieces)
        kept = sum(one.kept.own for one in pieces) - pieces[0].kept.input
        if end < len(self.segments):
            head = self.heads[end - 1]
            fixed += head.weights + head.optimizer
            kept += head.kept.own - (head.kept.input if pieces[-1].kept.output else 0)
        return fixed + self.rows * (kept * self.item_bytes // 4 + self.buffers(first, end))

    def buffers(self, first: int, end: int) -> int:
        """Bytes a row of the buffers of the links of a stage, a replay buffer among them."""
        received = int(self.links[first - 1] * self.received) if first else 0
        return received + (self.links[end - 1] * self.sent if end < len(self.segments) else 0)

    def check(self, bounds: Sequence[int], limit: int, hint: str = "") -> None:
        """Raises ConfigError, with by how much, if a stage needs more than `limit` bytes."""
        ends = [*bounds[1:], len(self.segments)]
        needs = [self.stage(first, end) for first, end in zip(bounds, ends, strict=True)]
        largest = max(range(len(needs)), key=needs.__getitem__)
        if needs[largest] <= limit:
            return
        first, end = bounds[largest], ends[largest]
        span = f"segments {bounds[largest]} to {ends[largest] - 1}"
        over = f"{show(needs[largest] - limit)} more than the limit"
        links = f"{show(self.rows * self.buffers(first, end))} of it for what comes and goes"
        story = f"Stage {largest} ({span}) needs {show(needs[largest])}, {links}, {over}. {hint}"
        allowed = f"at least {needs[largest]} bytes for this cut"
        raise ConfigError("pipeline.memory_limit", limit, allowed, story.strip())

    def nearest(self, stages: int, may: Fits = lambda first, end: True) -> list[int]:
        """The cut whose largest stage is smallest, of stages that there may be."""
        return least(self.stage, len(self.segments), stages, may)


def needs(
    pieces: Sequence[nn.Module],
    heads: Sequence[nn.Module | None],
    shapes: Sequence[tuple[int, ...]],
    links: Sequence[int],
    state: int,
    rows: int,
    received: float,
    sent: int,
    item_bytes: int,
) -> Needs:
    """The needs of a network on meta.

    Args:
        pieces: its segments.
        heads: of the cut in front of each but the first; None: there can be none.
        shapes: of a row at the entrance of each segment.
        links: bytes of a row at each cut.
        state: numbers that the optimizer keeps for each weight.
    """
    segments = zip(pieces, kept_bytes(pieces, shapes[0]), strict=True)
    behind = [
        (head or nn.Identity(), kept_bytes([head or nn.Identity()], shape, input_gradient=True)[0])
        for head, shape in zip(heads, shapes[1:], strict=True)
    ]
    return Needs(
        segments=tuple(_piece(module, state, kept) for module, kept in segments),
        heads=tuple(_piece(head, state, kept) for head, kept in behind),
        links=tuple(links),
        rows=rows,
        received=received,
        sent=sent,
        item_bytes=item_bytes,
    )


def _piece(module: nn.Module, state: int, kept: Kept) -> Piece:
    weights = sum(parameter.numel() for parameter in module.parameters())
    buffers = sum(buffer.nbytes for buffer in module.buffers())
    return Piece(2 * 4 * weights + buffers, 4 * state * weights, kept)


def optimizer_state(config: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps for each weight."""
    if isinstance(config, SgdConfig):
        return int(config.momentum > 0)
    return 2


def show(count: int) -> str:
    """Bytes as people read them."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
