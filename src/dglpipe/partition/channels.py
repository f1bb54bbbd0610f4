"""The dimension of a stage's output that holds the channels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from dglpipe.partition.fx.graph import Operations
from dglpipe.partition.fx.signature import name_of

_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.PReLU,
)
"""Modules whose weights read dimension 1; the weights of other modules read the last dimension."""

_FIRST_FUNCTIONS = {
    *("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "instance_norm", "prelu"),
}

_ARITHMETIC = {"add", "iadd", "mul", "imul", "sub", "isub", "truediv", "itruediv"}

_SAME = {
    *_ARITHMETIC,
    *("clone", "contiguous", "to", "float"),
    *("relu", "relu_", "gelu", "silu", "hardswish", "sigmoid", "dropout", "stochastic_depth"),
}
"""Functions and methods that keep the order of the dimensions."""

_SAME_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


def channels_at(operations: Operations, at: int, row: Sequence[int]) -> int:
    """The dimension of a row that holds the channels, for a cut before operation `at`.

    Args:
        row: shape of one row of the tensor that crosses the cut.
    """
    (crossing,) = operations.alive(at)
    dims = len(row) + 1
    places: dict[fx.Node, list[int]] = {crossing: list(range(dims))}
    for node in operations.nodes[at:]:
        source = next((one for one in node.all_input_nodes if one in places), None)
        if source is None:
            continue
        if operations.weights(node):
            return places[source][_consumed(operations, node, dims)] - 1
        moved = _moved(operations, node, places[source])
        if moved is not None:
            places[node] = moved
    return 0 if len(row) == 3 else len(row) - 1


def _consumed(operations: Operations, node: fx.Node, dims: int) -> int:
    """The dimension of an input of `dims` dimensions that the weights of `node` read.

    For a block that is one operation: the dimension that its first module with weights reads. For
    weights that are added or multiplied: the dimension without broadcasting.
    """
    module = operations.module(node)
    if module is not None:
        owner = next((part for part in module.modules() if _owns(part)), module)
        return 1 if isinstance(owner, _FIRST) else dims - 1
    if name_of(node) in _FIRST_FUNCTIONS:
        return 1
    if name_of(node) in _ARITHMETIC:
        shape = operations.shape(operations.weights(node)[0])
        wide = [at for at, size in enumerate(shape) if size > 1]
        if len(wide) == 1 and len(shape) < dims + 1:
            return dims - len(shape) + wide[0]
    return dims - 1


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _moved(operations: Operations, node: fx.Node, dims: list[int]) -> list[int] | None:
    """`dims` in the order of the dimensions of the output of `node`; None if unknown."""
    module, name = operations.module(node), name_of(node)
    if module is not None:
        return dims if isinstance(module, _SAME_MODULES) else _permuted(module, dims)
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return [dims[at] for at in order]  # type: ignore[index]
    if name == "transpose":
        one, other = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
        result = list(dims)
        result[one], result[other] = dims[other], dims[one]
        return result
    return dims if name in _SAME else None


def _permuted(module: nn.Module, dims: list[int]) -> list[int] | None:
    """`dims` permuted by a module such as torchvision's `Permute(dims)`; None for others."""
    order = getattr(module, "dims", None)
    known = isinstance(order, tuple | list) and sorted(order) == list(range(len(dims)))
    return [dims[at] for at in order] if known and order is not None else None
