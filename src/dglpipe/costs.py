"""What the segments of a network and the heads between them cost, by FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dglpipe.balance import Costs
from dglpipe.flops import count_flops
from dglpipe.partition import Traced, on_meta

HeadAt = Callable[[int, tuple[int, ...]], nn.Module | None]
"""The head of a cut in front of a segment, for features of a shape a row; None: it cannot be
there, and neither can the cut."""


def flop_costs(
    traced: Traced, shapes: Sequence[tuple[int, ...]], head_at: HeadAt, item_bytes: int
) -> Costs:
    """FLOPs a sample.

    Args:
        traced: on any device; nothing is computed.
        shapes: of a row at the entrance of every segment.
        head_at: on any device.
        item_bytes: of one number on a link.
    """
    known: dict[str, int] = {}

    def count(module: nn.Module | None, shape: tuple[int, ...], gradient: bool) -> float:
        if module is None:
            return math.inf
        key = f"{signature(module)} {shape} {gradient}"
        if key not in known:
            known[key] = count_flops(on_meta(module), shape, gradient)
        return known[key]

    pieces = traced.pieces
    whole = [count(piece, at, True) for piece, at in zip(pieces, shapes, strict=True)]
    own = [count(piece, at, False) for piece, at in zip(pieces, shapes, strict=True)]
    cuts = range(1, len(shapes))
    return Costs(
        segments=tuple(whole),
        input_gradients=tuple(a - b for a, b in zip(whole, own, strict=True)),
        # A stage learns from the gradient of its head's input.
        heads=tuple(count(head_at(at, shapes[at]), shapes[at], True) for at in cuts),
        links=link_bytes(shapes, item_bytes),
    )


def link_bytes(shapes: Sequence[tuple[int, ...]], item_bytes: int) -> tuple[int, ...]:
    """Of a row, at the cut in front of each segment but the first."""
    return tuple(math.prod(shape) * item_bytes for shape in shapes[1:])


def signature(module: nn.Module) -> str:
    """Equal for modules that do the same work on inputs of equal shape."""
    if not isinstance(module, fx.GraphModule):
        return repr(module)
    names = {node: f"%{at}" for at, node in enumerate(module.graph.nodes)}
    return "\n".join(_line(module, node, names) for node in module.graph.nodes)


def _line(module: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> str:
    what: Any = node.target
    if node.op == "call_module":
        what = repr(module.get_submodule(str(node.target)))
    elif node.op == "get_attr":
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        what = tuple(value.shape) if isinstance(value, Tensor) else value
    elif node.op == "placeholder":
        what = ""
    arguments: Any = (node.args, node.kwargs)
    return f"{names[node]} {what} {map_arg(arguments, lambda one: names[one])}"
