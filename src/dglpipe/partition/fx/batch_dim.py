"""Finds the tensors with the rows of the batch, and the operations on the number of rows.

A forward often begins with `b, c, h, w = x.shape` and ends with `x.reshape(b, -1)`. A tensor that
crosses a cut between these lines has b rows, so the stage above the cut reads b from the tensor.
Most rules have the same form: if dimension 0 of the first input is the batch, so is dimension 0 of
the output. An operation without a rule only prevents a cut. Other sizes depend on the image; a cut
between the line that reads such a size and the line that uses it is not possible.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from dglpipe.partition.fx.signature import name_of

READ_AT = "read_at"
"""Key of the source line in the `meta` of an operation that reads a shape."""
_PURE = ("_operator", "dglpipe.partition.fx.inplace_ops")
"""Modules of functions that compute numbers from numbers."""
_JOINING = {"cat", "concat", "stack"}
_SHAPING = {"reshape", "view", "expand"}
_OF_ALL = {
    *("add", "sub", "mul", "truediv", "div", "pow", "neg", "maximum", "minimum"),
    *("iadd", "isub", "imul", "itruediv", "add_", "sub_", "mul_", "div_"),
    *("matmul", "bmm", "scaled_dot_product_attention"),
}
"""Operations on several tensors with rows, and on numbers or vectors, whose output has rows."""


def _same(*_: Any, **__: Any) -> bool:
    return True


def _after_rows(*dims: Any, **_: Any) -> bool:
    return bool(dims) and all(type(dim) is int and dim > 0 for dim in dims)


def _reduced(dim: Any = None, *_: Any, **__: Any) -> bool:
    later = _after_rows(*dim) if isinstance(dim, list | tuple) else _after_rows(dim)
    return later or dim in (-1, (-1, -2), [-1, -2], (-2, -1), [-2, -1])


def _first_stays(*dims: Any, **_: Any) -> bool:
    listed = bool(dims) and isinstance(dims[0], list | tuple)
    return bool(dims) and (dims[0][0] if listed else dims[0]) == 0


def _all_rows(index: Any) -> bool:
    return isinstance(index, tuple) and bool(index) and index[0] == slice(None)


_RULES: dict[str, Callable[..., bool]] = {
    **dict.fromkeys(
        (
            *("relu", "relu_", "gelu", "silu", "sigmoid", "tanh", "softmax", "log_softmax"),
            *("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "mish", "softplus"),
            *("dropout", "stochastic_depth", "contiguous", "clone", "detach", "to", "float"),
            *("abs", "exp", "sqrt", "rsqrt", "square", "clamp", "clamp_", "normalize"),
            *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
            *("conv1d", "conv2d", "conv3d", "linear", "interpolate"),
            *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
        ),
        _same,
    ),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduced),
    "flatten": lambda start_dim=0, end_dim=-1: _after_rows(start_dim),
    "transpose": lambda dim0=0, dim1=0: _after_rows(dim0, dim1),
    "unsqueeze": lambda dim=0: _after_rows(dim),
    "squeeze": lambda dim=0: _after_rows(dim),
    "permute": _first_stays,
    "getitem": _all_rows,
}
"""Name -> whether the output has the rows of the first tensor, given the other arguments."""
_MODULES = {
    *("activation", "batchnorm", "channelshuffle", "conv", "dropout", "instancenorm", "linear"),
    *("normalization", "padding", "pixelshuffle", "pooling", "upsampling"),
}
"""Files of torch.nn whose modules process every row independently."""


def _keeps_rows(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return _after_rows(module.start_dim)
    if isinstance(module, nn.MultiheadAttention):
        return False
    folder, _, file = type(module).__module__.rpartition(".")
    known = folder == "torch.nn.modules" and file in _MODULES
    return known or isinstance(module, _DERIVED)


_DERIVED = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""Libraries derive modules from these classes."""


def _is_known(target: Any) -> bool:
    """Whether an operation is one of torch, torchvision or this package."""
    module = getattr(target, "__module__", None) or "torch"
    return isinstance(target, str) or module.partition(".")[0] in _OPERATIONS


_OPERATIONS = ("torch", "torchvision", "_operator", "dglpipe")


def reads_shape(node: fx.Node) -> bool:
    """Whether `node` reads the shape of a tensor, or the size of one dimension."""
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in ("shape", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


def read_rows_early(graph: fx.Graph) -> None:
    """Replaces `x.shape[0]` by `x.size(0)` where the shape is read, so that the shape, which
    contains sizes of the image, is not alive at a cut."""
    for node in list(graph.nodes):
        index = node.args[1] if node.target is operator.getitem and len(node.args) == 2 else None
        shape = node.args[0] if index == 0 and type(index) is int else None
        source = _whole_shape(shape)
        if source is None or not isinstance(shape, fx.Node):
            continue
        with graph.inserting_after(_origin(shape)):
            size = graph.call_method("size", (source, 0))
        size.meta.update(_origin(shape).meta)
        node.replace_all_uses_with(size)
        graph.erase_node(node)


def _whole_shape(shape: Any) -> fx.Node | None:
    """The tensor whose shape, or the beginning of it, is `shape`; None for other nodes."""
    while isinstance(shape, fx.Node):
        if (shape.target is getattr and shape.args[1] == "shape") or _is_size(shape, ()):
            return shape.all_input_nodes[0]
        beginning = shape.target is operator.getitem and _is_beginning(shape.args[1])
        shape = shape.args[0] if beginning else None
    return None


def _is_beginning(index: Any) -> bool:
    return isinstance(index, slice) and index.start in (None, 0) and index.step in (None, 1)


def _is_size(node: fx.Node, dims: tuple[Any, ...]) -> bool:
    method = node.op == "call_method" and node.target == "size"
    return method and (*node.args[1:], *node.kwargs.values()) == dims


def _origin(size: fx.Node) -> fx.Node:
    """The operation that reads the shape which contains `size`."""
    while not reads_shape(size) and size.all_input_nodes:
        size = size.all_input_nodes[0]
    return size


class Sizes:
    """The operations of a network that concern sizes.

    Args:
        network: the module that owns the weights.
        graph: graph of the operations; dimension 0 of its input is the batch.

    Attributes:
        tensors: operations whose output has one row per row of the batch.
        rows: operations that read the number of rows.
        counts: `rows`, and operations that compute numbers only from the number of rows.
        all: operations that read sizes, or compute numbers only from sizes.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self._network = network
        self.tensors: set[fx.Node] = set()
        self.rows: set[fx.Node] = set()
        self.counts: set[fx.Node] = set()
        self.all: set[fx.Node] = set()
        for node in graph.nodes:
            self._add(node)

    def read_at(self, size: fx.Node) -> str:
        """The source line that reads `size`, or the first size from which `size` is computed."""
        return str(_origin(size).meta.get(READ_AT) or name_of(_origin(size)))

    def _add(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        computed = node.op == "call_function" and bool(sources)
        arithmetic = computed and getattr(node.target, "__module__", "") in _PURE
        if reads_shape(node) or (arithmetic and self.all.issuperset(sources)):
            self.all.add(node)
        if _is_size(node, (0,)) and sources[0] in self.tensors:
            self.rows.add(node)
        if node in self.rows or (arithmetic and self.counts.issuperset(sources)):
            self.counts.add(node)
        if node.op == "placeholder" or (node not in self.all and self._has_rows(node)):
            self.tensors.add(node)

    def _has_rows(self, node: fx.Node) -> bool:
        first = node.args[0] if node.args else node.kwargs.get("input")
        if node.op == "call_module":
            return first in self.tensors and self._module_keeps_rows(node)
        if node.op not in ("call_function", "call_method") or not _is_known(node.target):
            return False
        name = name_of(node)
        if name in _JOINING:
            parts = first if isinstance(first, list | tuple) else ()
            dim = (*node.args[1:], *node.kwargs.values())
            return _after_rows(*dim or (0,)) and not self.tensors.isdisjoint(parts)
        if name in _SHAPING and self._is_rows(node):
            return True
        if name in _OF_ALL:
            sources = node.all_input_nodes
            return all(map(self._fits, sources)) and not self.tensors.isdisjoint(sources)
        rule = _RULES.get(name)
        if first not in self.tensors or rule is None:
            return False
        kwargs = {key: value for key, value in node.kwargs.items() if key != "input"}
        return rule(*node.args[1:], **kwargs)

    def _module_keeps_rows(self, node: fx.Node) -> bool:
        return _keeps_rows(self._network.get_submodule(str(node.target)))

    def _is_rows(self, node: fx.Node) -> bool:
        """Whether `node` reshapes a tensor to the rows of the batch."""
        sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("shape")
        return (sizes[0] if isinstance(sizes, list | tuple) and sizes else sizes) in self.rows

    def _fits(self, node: fx.Node) -> bool:
        """Whether a tensor with rows keeps its rows when `node` is added."""
        if node.op == "get_attr":
            value: Any = self._network
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return getattr(value, "ndim", 0) <= 1
        return node in self.tensors or node in self.all
