"""Reduces the output of a traced network to its logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from dglpipe.errors import ConfigError
from dglpipe.partition.fx import inplace_ops
from dglpipe.partition.fx.signature import name_of


def keep_logits(graph: fx.Graph, name: str) -> None:
    """Reduces an output of several values to the first computed value, and removes operations
    that only the other values need.

    Args:
        name: name of the network, for the error.

    Raises:
        ConfigError: the output contains no computed value.
    """
    end = next(node for node in reversed(graph.nodes) if node.op == "output")
    others = _needed(end.all_input_nodes)
    value: Any = end.args[0]
    while parts := _parts(value):
        # {"loss": None, "logits": ...}: skip None.
        value = next((part for part in parts if _computed(part)), None)
    if not isinstance(value, fx.Node):
        got, allowed = f"{name}, which returns no tensor", "a network that returns its logits"
        raise ConfigError("model", got, allowed)
    end.args = (value,)
    needed = _needed(end.all_input_nodes)
    # Keep operations that write in place into a tensor that the logits depend on.
    spare = others - _needed([*needed, *(node for node in others if _written(node) in needed)])
    for node in reversed(graph.nodes):
        if node in spare and not node.users and node.op != "placeholder":
            graph.erase_node(node)


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that a function or method changes in place, by its name; else None."""
    name = name_of(node)
    writes = name in _ARITHMETIC or (name.endswith("_") and not name.endswith("__"))
    called = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return node.all_input_nodes[0] if called and writes else None


_ARITHMETIC = {function.__name__ for function in inplace_ops.ARITHMETIC}


def _computed(value: Any) -> bool:
    """Whether `value` is the output of an operation, or contains one."""
    return isinstance(value, fx.Node) or any(map(_computed, _parts(value)))


def _parts(value: Any) -> list[Any]:
    """Parts of a tuple, a list, a dict, or an operation that builds a named tuple."""
    if isinstance(value, fx.Node):
        named = isinstance(value.target, type) and issubclass(value.target, tuple)
        return [*value.args, *value.kwargs.values()] if named else []
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else []


def _needed(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """`nodes`, and all nodes from which they are computed."""
    needed: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed
