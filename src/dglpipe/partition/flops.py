"""Work and memory counted without spending them, on the meta device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dglpipe.partition.balance import Costs
from dglpipe.partition.fx.signature import float_type, module_signature
from dglpipe.partition.segments import TracedNetwork

ROWS = 2
"""Of the batch that is counted: batch norm wants more than one."""


class Flops(NamedTuple):
    """Floating-point operations of forward and backward for one sample; a multiply-add is 2.

    Attributes:
        own: forward and the gradients of the weights.
        input_gradient: what the gradient of the batch takes on top.
    """

    own: int
    input_gradient: int


def count_flops(module: nn.Module, shape: Sequence[int]) -> Flops:
    """Matrix products, convolutions and attention count, as `torch.utils.flop_counter` does.

    Args:
        module: on meta, unless it looks at values; (B, *shape) -> one tensor.
        shape: of one row.
    """
    # Loads a compiler, which takes seconds.
    from torch.utils.flop_counter import FlopCounterMode

    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch = _rows(shape, module.parameters(), input_gradient=True)
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward},
    )
    totals = [0]
    with counter, _Light():
        loss = module(batch).sum()
        totals.append(counter.get_total_flops())
        for wanted in (weights, [*weights, batch]):
            if wanted and loss.requires_grad:
                loss.backward(retain_graph=True, inputs=wanted)
            totals.append(counter.get_total_flops())
    forward, own, whole = (later - before for before, later in itertools.pairwise(totals))
    return Flops((forward + own) // ROWS, (whole - own) // ROWS)


def _convolution_backward(
    gradient: Any,
    batch: Any,
    weights: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Gradients of input and weights each cost what the forward does, whatever the groups.

    The library counts the gradient of grouped weights once for every group.
    """
    from torch.utils.flop_counter import conv_flop_count

    forward = conv_flop_count(batch, weights, gradient, transposed=transposed)
    return int(forward) * (bool(output_mask[0]) + bool(output_mask[1]))


@dataclass(frozen=True, slots=True)
class Kept:
    """What autograd keeps of one piece of a network from forward to backward, in bytes a
    sample and in full precision.

    Attributes:
        own: of tensors that no piece before it keeps, its input included.
        input: of its input, if that is one of them.
        output: of its output, if it keeps that.
    """

    own: int
    input: int
    output: int


def kept_bytes(
    pieces: Sequence[nn.Module], shape: Sequence[int], input_gradient: bool = False
) -> list[Kept]:
    """What each of `pieces`, run one after the other, keeps.

    Args:
        pieces: on paper; (B, ...) -> one tensor.
        shape: of one row at the entrance of the first.
        input_gradient: whether the gradient of the batch is made too.
    """
    own = [tensor for piece in pieces for tensor in piece.parameters()]
    weights = {tensor.untyped_storage()._cdata for tensor in own}
    # Alive until all is counted, so that no address is used twice: the graph keeps them.
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes() // ROWS
        return tensor

    batch = _rows(shape, own, input_gradient)
    result = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Light():
        for piece in pieces:
            before = dict(kept)
            entrance = batch.untyped_storage()._cdata
            batch = piece(batch)
            new = {key: size for key, size in kept.items() if key not in before}
            exit_ = batch.untyped_storage()._cdata
            result.append(Kept(sum(new.values()), new.get(entrance, 0), kept.get(exit_, 0)))
    return result


def _rows(shape: Sequence[int], weights: Iterable[Tensor], input_gradient: bool) -> Tensor:
    """A batch where `weights` are, of their type; on meta if there are none."""
    own = list(weights)
    device = next((tensor.device for tensor in own), torch.device("meta"))
    dtype = float_type(own)
    return torch.zeros(ROWS, *shape, device=device, dtype=dtype, requires_grad=input_gradient)


def saved_bytes(module: nn.Module, shape: Sequence[int]) -> int:
    """Bytes a sample that autograd keeps from forward to backward, in full precision.

    Args:
        module: on meta; (B, *shape) -> one tensor. The batch itself does not count.
    """
    (kept,) = kept_bytes([module], shape)
    return kept.own - kept.input


class _Light(TorchFunctionMode):
    """Batch norm and ReLU as what they keep for backward: they have no FLOPs, and on meta they
    are slow."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and func in (nn.functional.batch_norm, torch.batch_norm):
            return _KeepsInput.apply(args[0])
        if args and func in (nn.functional.relu, torch.relu, torch.relu_):
            in_place = func is torch.relu_ or kwargs.get("inplace", args[1:2] == (True,))
            return _KeepsOutput.apply(args[0], in_place)
        return func(*args, **kwargs)


class _KeepsInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor) -> Tensor:
        ctx.save_for_backward(batch)
        return batch.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _KeepsOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor, in_place: bool) -> Tensor:
        if in_place:
            ctx.mark_dirty(batch)
        output = batch if in_place else batch.clone()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


Shape = tuple[int, ...]

HeadAt = Callable[[int, Shape], nn.Module | None]
"""The head of a cut in front of a segment, for features of a shape a row; None: it cannot be
there, and neither can the cut."""


class SegmentFlops:
    """FLOPs a sample, forward and backward. What does the same work is counted once.

    Args:
        traced: on meta, unless it looks at values.
        shapes: of a row at the entrance of every segment.
    """

    def __init__(self, traced: TracedNetwork, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        self._traced = traced
        # With the module: one that may not say all that it does is known by its id, which must
        # not become that of another.
        self._known: dict[tuple[str, Shape], tuple[Flops, nn.Module]] = {}

    def segment(self, at: int) -> Flops:
        """Of segment `at`; the first one of a stage makes no gradient of its input."""
        key = self._traced.signatures[at], self.shapes[at]
        return self._count(key, lambda: self._traced.piece(at))

    def head(self, head: nn.Module, shape: Shape) -> int:
        """Of a head, with the gradient of its input: the stage learns from it.

        Args:
            shape: of a row of what it reads.
        """
        return sum(self._count((module_signature(head), shape), lambda: head))

    def stage(self, first: int, end: int, input_gradient: bool) -> int:
        """Of segments `first` to `end` - 1, without a head.

        Args:
            input_gradient: whether the gradient of the stage's input is made.
        """
        segments = [self.segment(at) for at in range(first, end)]
        return sum(map(sum, segments)) - (0 if input_gradient else segments[0].input_gradient)

    def _count(self, key: tuple[str, Shape], module: Callable[[], nn.Module]) -> Flops:
        if key not in self._known:
            counted = module()
            self._known[key] = count_flops(counted, key[1]), counted
        return self._known[key][0]


def flop_costs(work: SegmentFlops, head_at: HeadAt, item_bytes: int) -> Costs:
    """FLOPs a sample.

    Args:
        head_at: on any device.
        item_bytes: of one number on a link.
    """
    segments = [work.segment(at) for at in range(len(work.shapes))]
    heads = starmap(head_at, enumerate(work.shapes[1:], start=1))
    return Costs(
        segments=tuple(map(sum, segments)),
        input_gradients=tuple(flops.input_gradient for flops in segments),
        heads=tuple(
            math.inf if head is None else work.head(head, shape)
            for head, shape in zip(heads, work.shapes[1:], strict=True)
        ),
        links=link_bytes(work.shapes, item_bytes),
    )


def link_bytes(shapes: Sequence[Shape], item_bytes: int) -> tuple[int, ...]:
    """Of a row, at the cut in front of each segment but the first."""
    return tuple(math.prod(shape) * item_bytes for shape in shapes[1:])
