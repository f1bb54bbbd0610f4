"""FLOPs of segments and auxiliary modules, counted on the meta device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dglpipe.partition.balance import SegmentCosts
from dglpipe.partition.fx.signature import module_signature
from dglpipe.partition.saved_tensors import ROWS, CheapOps, counted_batch
from dglpipe.partition.segments import TracedNetwork


class Flops(NamedTuple):
    """Floating-point operations of forward and backward for one sample; a multiply-add is 2.

    Attributes:
        own: FLOPs of forward and of the gradients of the weights.
        input_gradient: FLOPs of the gradient of the input.
    """

    own: int
    input_gradient: int


def count_flops(module: nn.Module, shape: Sequence[int]) -> Flops:
    """Counts matrix products, convolutions and attention, as `torch.utils.flop_counter` does.

    Args:
        module: (B, *shape) -> one tensor; on meta, unless it reads values of tensors.
        shape: shape of one row.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes seconds: imports a compiler

    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    batch = counted_batch(shape, module.parameters(), input_gradient=True)
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward},
    )
    totals = [0]
    with counter, CheapOps():
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
    """FLOPs of the gradients: input and weights each cost as much as forward, for any groups.

    `torch.utils.flop_counter` counts the gradient of grouped weights once per group.
    """
    from torch.utils.flop_counter import conv_flop_count

    forward = conv_flop_count(batch, weights, gradient, transposed=transposed)
    return int(forward) * (bool(output_mask[0]) + bool(output_mask[1]))


Shape = tuple[int, ...]


class Auxiliary(NamedTuple):
    """The auxiliary modules of a cut.

    Attributes:
        row: shape of one row of the features, the input of every module.
        is_before_pools: whether the features are the map in front of the pools at the end of the
            stage, and not its output.
    """

    modules: tuple[nn.Module, ...]
    row: Shape
    is_before_pools: bool


AuxiliaryAt = Callable[[int], Auxiliary | None]
"""Segment -> auxiliary modules of the cut before the segment; None if no cut is possible."""


class SegmentFlops:
    """FLOPs per sample of forward and backward. The results of equal modules are shared.

    Args:
        traced: the network; on meta, unless it reads values of tensors.
        shapes: shape of one input row of every segment.
    """

    def __init__(self, traced: TracedNetwork, shapes: Sequence[Shape]) -> None:
        self.shapes = tuple(shapes)
        self._traced = traced
        # Keeps every module alive, because a signature may contain the id of a module.
        self._known: dict[tuple[str, Shape], tuple[Flops, nn.Module]] = {}

    def segment(self, at: int) -> Flops:
        """FLOPs of segment `at`."""
        key = self._traced.signatures[at], self.shapes[at]
        return self._count(key, lambda: self._traced.piece(at))

    def auxiliary(self, modules: Iterable[nn.Module], shape: Shape) -> int:
        """FLOPs of auxiliary modules, with the gradient of their input.

        Args:
            shape: shape of one row of the features, the input of every module.
        """
        return sum(sum(self._module(one, shape)) for one in modules)

    def _module(self, module: nn.Module, shape: Shape) -> Flops:
        return self._count((module_signature(module), shape), lambda: module)

    def stage(self, first: int, end: int, input_gradient: bool, replays: bool = False) -> int:
        """FLOPs of segments `first` to `end` - 1, without auxiliary modules.

        Args:
            input_gradient: whether the stage computes the gradient of its input.
            replays: whether the stage runs forward twice. Forward has half of `Flops.own`.
        """
        segments = [self.segment(at) for at in range(first, end)]
        again = sum(one.own for one in segments) // 2 if replays else 0
        omitted = 0 if input_gradient else segments[0].input_gradient
        return sum(map(sum, segments)) - omitted + again

    def _count(self, key: tuple[str, Shape], module: Callable[[], nn.Module]) -> Flops:
        if key not in self._known:
            counted = module()
            self._known[key] = count_flops(counted, key[1]), counted
        return self._known[key][0]


def flop_costs(
    flops: SegmentFlops, auxiliary_at: AuxiliaryAt, item_bytes: int, replays: bool = False
) -> SegmentCosts:
    """Costs in FLOPs per sample.

    Args:
        auxiliary_at: the auxiliary modules of a cut, on any device.
        item_bytes: bytes of one element on a link.
        replays: whether a stage runs forward twice; the last stage counts like the others.
    """

    def head(at: int) -> float:
        found = auxiliary_at(at)
        return math.inf if found is None else flops.auxiliary(found.modules, found.row)

    segments = [flops.segment(at) for at in range(len(flops.shapes))]
    again = [one.own // 2 if replays else 0 for one in segments]
    return SegmentCosts(
        segments=tuple(sum(one) + more for one, more in zip(segments, again, strict=True)),
        input_gradients=tuple(one.input_gradient for one in segments),
        heads=tuple(map(head, range(1, len(flops.shapes)))),
        links=link_bytes(flops.shapes, item_bytes),
    )


def link_bytes(shapes: Sequence[Shape], item_bytes: int) -> tuple[int, ...]:
    """Bytes per row that cross the cut before each segment except the first."""
    return tuple(math.prod(shape) * item_bytes for shape in shapes[1:])
