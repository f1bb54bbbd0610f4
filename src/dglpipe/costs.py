"""What the segments of a network and the heads between them cost, by FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import starmap

from torch import nn

from dglpipe.balance import Costs
from dglpipe.flops import count_flops
from dglpipe.models.signature import module_signature
from dglpipe.partition import Traced

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
        self._known: dict[tuple[str, Shape, bool], int] = {}

    def segment(self, at: int, input_gradient: bool) -> int:
        """Of segment `at`.

        Args:
            input_gradient: whether the gradient of its input is made: not in the first
                segment of a stage.
        """
        key = self._traced.signatures[at], self.shapes[at], input_gradient
        return self._count(key, lambda: self._traced.piece(at))

    def head(self, head: nn.Module, shape: Shape) -> int:
        """Of a head, with the gradient of its input: the stage learns from it.

        Args:
            shape: of a row of what it reads.
        """
        return self._count((module_signature(head), shape, True), lambda: head)

    def stage(self, first: int, end: int, input_gradient: bool) -> int:
        """Of segments `first` to `end` - 1, without a head.

        Args:
            input_gradient: whether the gradient of the stage's input is made.
        """
        return sum(self.segment(at, at > first or input_gradient) for at in range(first, end))

    def _count(self, key: tuple[str, Shape, bool], module: Callable[[], nn.Module]) -> int:
        if key not in self._known:
            _, shape, input_gradient = key
            self._known[key] = count_flops(module(), shape, input_gradient)
        return self._known[key]


def flop_costs(work: Work, head_at: HeadAt, item_bytes: int) -> Costs:
    """FLOPs a sample.

    Args:
        head_at: on any device.
        item_bytes: of one number on a link.
    """
    segments = range(len(work.shapes))
    whole = [work.segment(at, True) for at in segments]
    heads = starmap(head_at, enumerate(work.shapes[1:], start=1))
    return Costs(
        segments=tuple(whole),
        input_gradients=tuple(whole[at] - work.segment(at, False) for at in segments),
        heads=tuple(
            math.inf if head is None else work.head(head, shape)
            for head, shape in zip(heads, work.shapes[1:], strict=True)
        ),
        links=link_bytes(work.shapes, item_bytes),
    )


def link_bytes(shapes: Sequence[Shape], item_bytes: int) -> tuple[int, ...]:
    """Of a row, at the cut in front of each segment but the first."""
    return tuple(math.prod(shape) * item_bytes for shape in shapes[1:])
