"""Memory model of a stage, and the limit `pipeline.memory_limit`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from torch import Tensor, nn

from dglpipe.config import OptimizerConfig, SgdConfig
from dglpipe.errors import ConfigError
from dglpipe.partition.balance import Fits, least
from dglpipe.partition.saved_tensors import SavedBytes, saved_bytes
from dglpipe.partition.segments import TracedNetwork, tensors_by_key
from dglpipe.pipeline.link import LinkBuffers, Stash


class StageMemory(NamedTuple):
    """Bytes of one stage, without the libraries of the process (some hundred megabytes).

    Attributes:
        weights: parameters, their gradients, and buffers of modules.
        optimizer: state of the optimizer.
        activations: tensors that autograd saves from forward to backward.
        buffers: message slots of the links, and stored batches.
    """

    weights: int
    optimizer: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class PieceMemory:
    """Bytes of a segment, or of the auxiliary modules of one cut.

    Attributes:
        parameters: bytes of the parameters in fp32.
        buffers: bytes of the buffers of the modules.
        saved: tensors saved for backward, per sample.
    """

    parameters: int
    buffers: int
    saved: SavedBytes


@dataclass(frozen=True, slots=True)
class AuxiliaryMemory:
    """Memory of the auxiliary modules of a cut, and what the cut changes.

    Attributes:
        own: memory of the auxiliary modules.
        below: what the last segment of the stage saves. Without the pools at its end if the
            auxiliary modules read the map in front of them: the output has no gradient.
    """

    own: PieceMemory
    below: SavedBytes


@dataclass(frozen=True, slots=True)
class NetworkMemory:
    """Bytes of all segments of a network.

    Attributes:
        segments: the segments in order. A parameter that several segments use counts for the
            first of these segments.
        bodies: the segments without the pools at their end.
        constants: (bytes, segments) of the tensors outside the `state_dict` that several segments
            use. Each stage has its own copy.
    """

    segments: tuple[PieceMemory, ...]
    bodies: tuple[PieceMemory, ...]
    constants: tuple[tuple[int, frozenset[int]], ...] = ()


@dataclass(frozen=True)
class MemoryNeeds:
    """Memory of stage j as a function of its segments.

    Attributes:
        network: memory of all segments of the network.
        auxiliary: segment -> memory of the auxiliary modules of the cut before the segment.
        elements: elements per row that cross the cut before each segment except segment 0.
        optimizer_state: elements of optimizer state per weight.
        rows: rows per step on one replica.
        item_bytes: bytes of one element of an activation, 4 in fp32.
        below: bytes per element and buffers of the link from stage j - 1; None for stage 0.
        above: buffers of the link to stage j + 1; None for the last stage.
        extras: bytes per row of the extra tensors on these links.
        share: fraction of a batch whose activations the stage keeps at the same time.
        stash: what the stage keeps of earlier batches.
        copies: bytes of a message with the weights of each segment; empty: there are none.
        image_elements: elements of one image.
    """

    network: NetworkMemory
    auxiliary: Callable[[int], AuxiliaryMemory]
    elements: tuple[int, ...]
    optimizer_state: int
    rows: int
    item_bytes: int
    below: tuple[int, LinkBuffers] | None
    above: LinkBuffers | None
    extras: tuple[int, int] = (0, 0)
    share: Fraction = Fraction(1)
    stash: Stash = field(default_factory=Stash)
    copies: Sequence[int] = ()
    image_elements: int = 0

    def stage(self, first: int, end: int) -> StageMemory:
        """Memory of a stage of segments `first` to `end` - 1 with its auxiliary modules."""
        segments = self.network.segments
        parameters = self._parameters[end] - self._parameters[first]
        buffers = self._buffers[end] - self._buffers[first]
        for size, users in self.network.constants:
            buffers += size * any(first <= at < end for at in users)
        saved = self._saved[end] - self._saved[first] - segments[first].saved.input
        if end < len(segments):
            auxiliary, below = self.auxiliary(end).own, self.auxiliary(end).below
            parameters += auxiliary.parameters
            buffers += auxiliary.buffers
            # Features that both the segment and an auxiliary module save count once.
            twice = auxiliary.saved.input if below.output else 0
            saved += auxiliary.saved.own - twice + below.own - segments[end - 1].saved.own
        row_bytes = self.link_row_bytes(first, end) + self._stash_row_bytes(first, end)
        return StageMemory(
            weights=2 * parameters + buffers,
            optimizer=self.optimizer_state * parameters,
            activations=int(self.rows * (saved * self.item_bytes // 4) * self.share),
            buffers=self.rows * row_bytes
            + self.stash.weights * parameters
            + self._copies_bytes(first, end),
        )

    def _copies_bytes(self, first: int, end: int) -> int:
        """Bytes of the messages with weights of a first segment."""
        sizes, stash = self.copies, self.stash
        above = sizes[end] if end < len(sizes) else 0
        below = sizes[first] if first < len(sizes) else 0
        return stash.copies_from_above * above + stash.copies_to_below * below

    def _stash_row_bytes(self, first: int, end: int) -> int:
        """Bytes per row of what the stage keeps of earlier batches."""
        stash, is_last = self.stash, end == len(self.network.segments)
        inputs = self.elements[first - 1] if first else self.image_elements
        outputs = 0 if is_last else self.elements[end - 1]
        kept = inputs * stash.inputs + outputs * (stash.outputs + stash.from_above)
        return self.item_bytes * (kept + (inputs * stash.to_below if first else 0))

    @functools.cached_property
    def _parameters(self) -> list[int]:
        return _prefix_sums(one.parameters for one in self.network.segments)

    @functools.cached_property
    def _buffers(self) -> list[int]:
        return _prefix_sums(one.buffers for one in self.network.segments)

    @functools.cached_property
    def _saved(self) -> list[int]:
        return _prefix_sums(one.saved.own for one in self.network.segments)

    def link_row_bytes(self, first: int, end: int) -> int:
        """Bytes per row of the buffers of both links of a stage."""
        total = 0
        if first and self.below is not None:
            item_bytes, buffers = self.below
            row_bytes = self.elements[first - 1] * item_bytes + self.extras[0]
            total += buffers.receiver_bytes(row_bytes, item_bytes)
        if end < len(self.network.segments) and self.above is not None:
            row_bytes = self.elements[end - 1] * self.item_bytes + self.extras[1]
            total += self.above.sender_bytes(row_bytes)
        return total


def _prefix_sums(sizes: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """`pipeline.memory_limit` for the stages of a run.

    Attributes:
        size: the limit in bytes.
        stages: memory needs by stage.
        per_stage: whether the settings differ between stages.
    """

    size: int
    stages: tuple[MemoryNeeds, ...]
    per_stage: bool

    def fits(self, j: int, first: int, end: int) -> bool:
        """Whether stage `j` may consist of segments `first` to `end` - 1."""
        return self._total(j, first, end) <= self.size

    def _total(self, j: int, first: int, end: int) -> int:
        return self.stages[j].stage(first, end).total

    def check(self, bounds: Sequence[int], hint: str = "") -> None:
        """Raises ConfigError if a stage needs more than the limit; the message has the excess."""
        count = len(self.stages[0].network.segments)
        spans = list(itertools.pairwise([*bounds, count]))
        needs = [own.stage(*span) for own, span in zip(self.stages, spans, strict=True)]
        largest = max(range(len(needs)), key=lambda j: needs[j].total)
        need, (first, end) = needs[largest], spans[largest]
        if need.total <= self.size:
            return
        over = f"{format_bytes(need.total - self.size)} more than the limit"
        links = f"including {format_bytes(need.buffers)} for the buffers of its links"
        settings = " with its settings in per_stage" if self.per_stage else ""
        stage = f"Stage {largest} (segments {first} to {end - 1})"
        text = f"{stage} needs {format_bytes(need.total)}{settings}, {links}, {over}. {hint}"
        allowed = f"at least {need.total} bytes for this cut"
        raise ConfigError("pipeline.memory_limit", self.size, allowed, text.strip())

    def nearest(self, may: Fits) -> list[int]:
        """The cut that minimises the memory of the largest stage.

        Args:
            may: which segments each stage may consist of.
        """
        count = len(self.stages[0].network.segments)
        return least(self._total, count, len(self.stages), may)


def network_memory(traced: TracedNetwork, shape: Sequence[int]) -> NetworkMemory:
    """Memory of the segments of a network on meta.

    Args:
        shape: shape of one image.
    """
    pieces = [traced.piece(at) for at in range(len(traced.segments))]
    named = [one for one in tensors_by_key(traced.network).values() if isinstance(one, Tensor)]
    state = {id(tensor) for tensor in named}
    users: dict[int, tuple[Tensor, set[int]]] = {}
    for at, piece in enumerate(pieces):
        for tensor in itertools.chain(piece.parameters(), piece.buffers()):
            users.setdefault(id(tensor), (tensor, set()))[1].add(at)
    for tensor in named:  # the last stage owns the tensors that no segment uses
        users.setdefault(id(tensor), (tensor, {len(pieces) - 1}))
    parameters, buffers = [0] * len(pieces), [0] * len(pieces)
    constants = []
    for key, (tensor, segments) in users.items():
        if isinstance(tensor, nn.Parameter):
            parameters[min(segments)] += 4 * tensor.numel()
        elif key in state or len(segments) == 1:
            buffers[min(segments)] += tensor.nbytes
        else:
            constants.append((tensor.nbytes, frozenset(segments)))
    parts = [traced.piece_without_pools(at) or (piece,) for at, piece in enumerate(pieces)]
    counted = iter(saved_bytes(list(itertools.chain(*parts)), shape))
    saved = [list(itertools.islice(counted, len(part))) for part in parts]
    whole = [
        SavedBytes(sum(one.own for one in each), each[0].input, each[-1].output) for each in saved
    ]
    bodies = [each[0] for each in saved]
    return NetworkMemory(
        segments=tuple(map(PieceMemory, parameters, buffers, whole)),
        bodies=tuple(map(PieceMemory, parameters, buffers, bodies)),
        constants=tuple(constants),
    )


def auxiliary_memory(modules: Sequence[nn.Module], shape: Sequence[int]) -> PieceMemory:
    """Memory of the auxiliary modules of a cut, on meta.

    Args:
        shape: shape of one row of the features, the input of every module.
    """
    saved = [saved_bytes([one], shape, input_gradient=True)[0] for one in modules]
    features = max((one.input for one in saved), default=0)  # the modules share their input
    whole = nn.ModuleList(modules)
    learned = [one for one in whole.parameters() if one.requires_grad]
    fixed = [one for one in whole.parameters() if not one.requires_grad]
    return PieceMemory(
        parameters=4 * sum(one.numel() for one in learned),
        buffers=sum(one.nbytes for one in (*whole.buffers(), *fixed)),
        saved=SavedBytes(sum(one.own - one.input for one in saved) + features, features, 0),
    )


def optimizer_state(config: OptimizerConfig) -> int:
    """Elements of optimizer state per weight."""
    average = int(config.lookahead > 0)
    if isinstance(config, SgdConfig):
        return int(config.momentum > 0) + average
    return 2 + average


def format_bytes(count: int) -> str:
    """Formats a number of bytes with a unit, for messages."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.4g} {unit}"
