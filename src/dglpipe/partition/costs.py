"""What the segments of a network and the heads between them cost, by FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import starmap

from torch import nn

from dglpipe.partition.balance import Costs
from dglpipe.partition.flops import Flops, count_flops
from dglpipe.partition.fx.signature import module_signature
from dglpipe.partition.segments import Traced

Shape = tuple[int, ...]
HeadAt = Callable[[int, Shape], nn.Module | None]
"""The head of a cut in front of a segment, for features of a shape a row; None: it cannot be
there, and neither can the cut."""


class Work:
    """FLOPs a sample, forward and backward. What does the same work is counted once.

    Args:
        traced: on meta, unless it looks at values.
        shapes: of a row at the entrance of every segment.
    """

    def __init__(self, traced: Traced, shapes: Sequence[Shape]) -> None:
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


def flop_costs(work: Work, head_at: HeadAt, item_bytes: int) -> Costs:
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
