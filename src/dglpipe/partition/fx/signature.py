"""Signatures: equal strings for modules or operations that do the same computation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, map_arg

_DESCRIBED = ("torch.", "torchvision.")
"""Packages whose modules have a complete `repr`."""


def module_signature(module: nn.Module) -> str:
    """Equal for modules that do the same computation on equal shapes; weights may differ.

    The signature of a module whose `repr` may be incomplete contains its id."""
    shapes = [tuple(tensor.shape) for tensor in module.parameters()]
    known = all(type(part).__module__.startswith(_DESCRIBED) for part in module.modules())
    return f"{module!r} {shapes}" if known else f"{module!r} {shapes} {id(module)}"


def operations_signature(network: nn.Module, nodes: Iterable[fx.Node], output: Argument) -> str:
    """Signature of operations of a traced network.

    Args:
        nodes: the operations, in order of execution.
        output: output of the operations.
    """
    numbers: dict[fx.Node, int] = {}

    def name(node: fx.Node) -> Any:
        if node.op == "get_attr":
            return _described(_attribute(network, str(node.target)))
        return f"%{numbers.setdefault(node, len(numbers))}"

    def line(node: fx.Node) -> str:
        what: Any = node.target
        if node.op == "call_module":
            what = module_signature(network.get_submodule(str(node.target)))
        return f"{what} {map_arg((node.args, node.kwargs), name)} {name(node)}"

    return "\n".join([*map(line, nodes), str(map_arg(output, name))])


def _attribute(network: nn.Module, path: str) -> Any:
    value: Any = network
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _described(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def float_type(weights: Iterable[Tensor], default: torch.dtype = torch.float32) -> torch.dtype:
    """The first floating-point dtype among `weights`, the dtype of the activations."""
    return next((one.dtype for one in weights if one.is_floating_point()), default)


def name_of(node: fx.Node) -> str:
    """Name of the function or method of an operation, or the path of its module."""
    name: str = getattr(node.target, "__name__", str(node.target))
    return name
