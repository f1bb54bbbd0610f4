"""Sizes of tensors among the operations: which are the number of rows of the batch.

A forward often begins with `b, c, h, w = x.shape` and ends with `x.reshape(b, -1)`. The tensor
that crosses a cut between them has b rows too, and the stage behind the cut reads b from that one.
Most rules here are of one kind: if the first tensor has the rows of the batch in dimension 0, so
has what the operation makes of it. An operation that has no rule stands in the way of a cut, no
more. Other sizes are left alone: they depend on the image, and stay where they are read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from dglpipe.partition.fx.signature import name_of

READ_AT = "read_at"
"""Key of the line, in the `meta` of an operation that reads a shape."""
_PURE = ("_operator", "dglpipe.partition.fx.inplace_ops")
"""Modules of functions that make numbers of numbers."""
_JOINING = {"cat", "concat", "stack"}
_SHAPING = {"reshape", "view", "expand"}
_OF_ALL = {
    *("add", "sub", "mul", "truediv", "div", "pow", "neg", "maximum", "minimum"),
    *("iadd", "isub", "imul", "itruediv", "add_", "sub_", "mul_", "div_"),
    *("matmul", "bmm", "scaled_dot_product_attention"),
}
"""What makes rows of several tensors with rows, and of numbers or vectors besides."""


def _same(*_: Any, **__: Any) -> bool:
    return True


def _behind(*dims: Any, **_: Any) -> bool:
    return bool(dims) and all(type(dim) is int and dim > 0 for dim in dims)


def _reduced(dim: Any = None, *_: Any, **__: Any) -> bool:
    behind = _behind(*dim) if isinstance(dim, list | tuple) else _behind(dim)
    return behind or dim in (-1, (-1, -2), [-1, -2], (-2, -1), [-2, -1])


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
    "flatten": lambda start_dim=0, end_dim=-1: _behind(start_dim),
    "transpose": lambda dim0=0, dim1=0: _behind(dim0, dim1),
    "unsqueeze": lambda dim=0: _behind(dim),
    "squeeze": lambda dim=0: _behind(dim),
    "permute": _first_stays,
    "getitem": _all_rows,
}
"""By name: whether these arguments behind the tensor leave it its rows."""
_MODULES = {
    *("activation", "batchnorm", "channelshuffle", "conv", "dropout", "instancenorm", "linear"),
    *("normalization", "padding", "pixelshuffle", "pooling", "upsampling"),
}
"""Where torch.nn has modules that work on every row."""


def _keeps_rows(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return _behind(module.start_dim)
    if isinstance(module, nn.MultiheadAttention):
        return False
    folder, _, file = type(module).__module__.rpartition(".")
    known = folder == "torch.nn.modules" and file in _MODULES
    return known or isinstance(module, _DERIVED)


_DERIVED = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""Libraries derive their own from these."""


def _is_known(target: Any) -> bool:
    """Whether an operation is one of torch's."""
    module = getattr(target, "__module__", None) or "torch"
    return isinstance(target, str) or module.partition(".")[0] in _OPERATIONS


_OPERATIONS = ("torch", "torchvision", "_operator", "dglpipe")


def reads_shape(node: fx.Node) -> bool:
    """Whether `node` gives sizes of a tensor: all of them, or that of one dimension."""
    if node.op == "call_function":
        return node.target is getattr and node.args[1] in ("shape", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


def read_rows_early(graph: fx.Graph) -> None:
    """Reads `x.shape[0]` as `x.size(0)` where the shape is read, so that the shape itself, which
    has sizes of images too, need not be kept."""
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
    """The tensor whose shape this is, all of it or its first sizes."""
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
    """The operation that reads the shape of which `size` is a part."""
    while not reads_shape(size) and size.all_input_nodes:
        size = size.all_input_nodes[0]
    return size


class Sizes:
    """What the operations of a network make of sizes.

    Args:
        network: owns the weights.
        graph: of its operations; its input has the rows of the batch in dimension 0.

    Attributes:
        tensors: those that have a row for each row of the batch.
        rows: operations that give the number of these.
        counts: these, and numbers that are computed of them alone.
        all: whatever is a size, or is computed of sizes alone.
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
        """The line of the forward in which `size`, or the first it is computed of, is read."""
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
            return _behind(*dim or (0,)) and not self.tensors.isdisjoint(parts)
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
        """Whether `node` shapes a tensor to the rows of the batch."""
        sizes = node.args[1] if len(node.args) > 1 else node.kwargs.get("shape")
        return (sizes[0] if isinstance(sizes, list | tuple) and sizes else sizes) in self.rows

    def _fits(self, node: fx.Node) -> bool:
        """Whether `node` can be added to a tensor with rows and leave it its rows."""
        if node.op == "get_attr":
            value: Any = self._network
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return getattr(value, "ndim", 0) <= 1
        return node in self.tensors or node in self.all
