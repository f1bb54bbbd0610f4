"""Merges the graphs of a network in training and in evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import Argument, map_aggregate

from dglpipe.errors import ConfigError
from dglpipe.partition.fx.opaque import UntraceableError
from dglpipe.partition.fx.signature import name_of


@dataclass(frozen=True, slots=True)
class Trace:
    """A network, traced in one mode."""

    graph: fx.Graph
    constants: dict[str, str]
    """Values of tensors that the forward creates, by the name of their attribute."""


def merged(learning: Trace, testing: Trace) -> fx.Graph:
    """The graph of `testing`. Arguments that are True in training and False in evaluation are
    replaced by the mode of the module that runs the graph.

    Raises:
        UntraceableError: the graphs differ in another way.
    """
    graph = testing.graph
    modes = _Modes(graph)
    same: dict[fx.Node, fx.Node] = {}
    for one, other in itertools.zip_longest(learning.graph.nodes, list(graph.nodes)):
        if one is None or other is None or not _is_same(one, other, learning, testing):
            raise _differing(one or other)
        try:
            args = modes.blend(one.args, other.args, same)
            kwargs = modes.blend(one.kwargs, other.kwargs, same)
        except _DifferenceError:
            raise _differing(one) from None
        other.args, other.kwargs = args, kwargs
        same[one] = other
    return graph


def _is_same(one: fx.Node, other: fx.Node, learning: Trace, testing: Trace) -> bool:
    """Whether two nodes are the same operation; ignores their arguments."""
    values = [
        trace.constants.get(str(node.target)) for trace, node in ((learning, one), (testing, other))
    ]
    if None not in values:
        return values[0] == values[1]
    return (one.op, one.target) == (other.op, other.target)


_MISSING = object()


class _DifferenceError(Exception):
    """Two arguments differ in another way than by the mode."""


class _Modes:
    """Replaces arguments by the mode of the module that runs the graph.

    Args:
        graph: receives a node that reads `training` if an argument needs the mode.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._node: fx.Node | None = None

    def blend(self, learning: Argument, testing: Argument, same: Mapping[fx.Node, fx.Node]) -> Any:
        """The argument `testing`, with values that are True in `learning` and False in `testing`
        replaced by the mode.

        Args:
            same: node of the training graph -> equal node of the evaluation graph.
        """
        values: list[Any] = []
        map_aggregate(learning, values.append)
        left = iter(values)

        def blended(value: Any) -> Any:
            other = next(left, _MISSING)
            if isinstance(other, fx.Node):
                other = same.get(other)
            if other is True and value is False:
                return self._mode()
            if type(other) is not type(value) or other != value:
                raise _DifferenceError
            return value

        result = map_aggregate(testing, blended)
        if next(left, _MISSING) is not _MISSING:
            raise _DifferenceError
        return result

    def _mode(self) -> fx.Node:
        if self._node is None:
            with self._graph.inserting_after(next(iter(self._graph.nodes))):
                self._node = self._graph.get_attr("training")
        return self._node


def _differing(node: fx.Node) -> UntraceableError:
    where = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    got = f"{name_of(node)}{f' in {where[-1]}' if where else ''}"
    hint = "An argument may be self.training; the operations must not depend on it otherwise"
    user_error = ConfigError("model", got, "the same operations in training and evaluation", hint)
    return UntraceableError(where[-1] if where else "", user_error)
