"""What a stage of any cut needs in memory, and whether that is within a limit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from dglpipe.config import OptimizerConfig, SgdConfig
from dglpipe.errors import ConfigError
from dglpipe.partition.balance import Fits, least
from dglpipe.partition.flops import Kept, kept_bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment, or a head, with its own memory in bytes.

    Attributes:
        weights: parameters in full precision.
        buffers: of the modules.
        kept: a sample's tensors from forward to backward.
    """

    weights: int
    buffers: int
    kept: Kept


@dataclass(frozen=True)
class Needs:
    """The memory of every stage that a network can be cut into, all with the same settings.

    Attributes:
        segments: in order.
        heads: of the cut in front of each segment but segment 0.
        links: of the same cuts, the bytes of a row that go up.
        state: numbers that the optimizer keeps for each weight.
        rows: of a step on one replica.
        received: messages, of the bytes of `links`, for what comes; `sent` for what goes.
        item_bytes: of one number of an activation, 4 in full precision.
        held: share of a batch whose activations are kept at a time.
    """

    segments: tuple[Piece, ...]
    heads: tuple[Piece, ...]
    links: tuple[int, ...]
    state: int
    rows: int
    received: float
    sent: int
    item_bytes: int
    held: Fraction = Fraction(1)

    def stage(self, first: int, end: int) -> int:
        """Bytes of a stage of segments `first` to `end` - 1, with its head and the buffers of
        its links; a process starts at some hundred megabytes of libraries besides."""
        fixed = self._fixed[end] - self._fixed[first]
        kept = self._kept[end] - self._kept[first] - self.segments[first].kept.input
        if end < len(self.segments):
            head = self.heads[end - 1]
            fixed += self._own(head)
            kept += head.kept.own - (head.kept.input if self.segments[end - 1].kept.output else 0)
        activations = int(self.rows * (kept * self.item_bytes // 4) * self.held)
        return fixed + activations + self.rows * self.buffers(first, end)

    def _own(self, piece: Piece) -> int:
        """Bytes of weights, their gradients, the optimizer's state and buffers."""
        return piece.weights * (2 + self.state) + piece.buffers

    @functools.cached_property
    def _fixed(self) -> list[int]:
        """Of the segments below each: there are many more stages than segments."""
        return [0, *itertools.accumulate(map(self._own, self.segments))]

    @functools.cached_property
    def _kept(self) -> list[int]:
        return [0, *itertools.accumulate(one.kept.own for one in self.segments)]

    def buffers(self, first: int, end: int) -> int:
        """Bytes a row of the buffers of the links of a stage, a replay buffer among them."""
        received = int(self.links[first - 1] * self.received) if first else 0
        return received + (self.links[end - 1] * self.sent if end < len(self.segments) else 0)


@dataclass(frozen=True, slots=True)
class Limit:
    """What the stages of a run may need, each with the settings that it has.

    Attributes:
        size: bytes that no stage may exceed.
        stages: the needs of stage j, wherever it is cut.
        own: whether stages have settings of their own.
    """

    size: int
    stages: tuple[Needs, ...]
    own: bool

    def fits(self, j: int, first: int, end: int) -> bool:
        """Whether stage `j` may have segments `first` to `end` - 1."""
        return self._need(j, first, end) <= self.size

    def _need(self, j: int, first: int, end: int) -> int:
        return self.stages[j].stage(first, end)

    def check(self, bounds: Sequence[int], hint: str = "") -> None:
        """Raises ConfigError, with by how much, if a stage needs more."""
        spans = list(itertools.pairwise([*bounds, len(self.stages[0].segments)]))
        needs = [self._need(j, *span) for j, span in enumerate(spans)]
        largest = max(range(len(needs)), key=needs.__getitem__)
        if needs[largest] <= self.size:
            return
        (first, end), stage = spans[largest], self.stages[largest]
        over = f"{show(needs[largest] - self.size)} more than the limit"
        links = f"{show(stage.rows * stage.buffers(first, end))} of it for what comes and goes"
        settings = ", as per_stage has it" if self.own else ""
        who = f"Stage {largest} (segments {first} to {end - 1})"
        story = f"{who} needs {show(needs[largest])}{settings}, {links}, {over}. {hint}"
        allowed = f"at least {needs[largest]} bytes for this cut"
        raise ConfigError("pipeline.memory_limit", self.size, allowed, story.strip())

    def nearest(self, may: Fits) -> list[int]:
        """The cut whose largest stage is smallest, of stages that there may be."""
        return least(self._need, len(self.stages[0].segments), len(self.stages), may)


def segment_pieces(modules: Sequence[nn.Module], shape: Sequence[int]) -> tuple[Piece, ...]:
    """The segments of a network on meta.

    Args:
        shape: of a row of the images.
    """
    kept = kept_bytes(modules, shape)
    return tuple(_piece(module, own) for module, own in zip(modules, kept, strict=True))


def head_pieces(
    heads: Sequence[nn.Module | None], shapes: Sequence[Sequence[int]]
) -> tuple[Piece, ...]:
    """The heads of the cut in front of each segment but the first, on meta.

    Args:
        heads: None: there can be none.
        shapes: of a row of what each reads.
    """
    pieces = []
    for head, shape in zip(heads, shapes, strict=True):
        module = head or nn.Identity()
        pieces.append(_piece(module, kept_bytes([module], shape, input_gradient=True)[0]))
    return tuple(pieces)


def _piece(module: nn.Module, kept: Kept) -> Piece:
    weights = sum(parameter.numel() for parameter in module.parameters())
    return Piece(4 * weights, sum(buffer.nbytes for buffer in module.buffers()), kept)


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
