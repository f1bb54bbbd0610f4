"""The operations of a network: weights, norms, lifetimes of tensors, possible cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.fx.node import Argument

from dglpipe.partition.fx.batch_dim import Sizes
from dglpipe.partition.fx.inplace_ops import ARITHMETIC
from dglpipe.partition.fx.signature import name_of

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,  # not a norm, but also belongs to the operation before it
)
_NORM_FUNCTIONS = {
    *("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"),
    "prelu",
}
_SHARING_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
_SHARING = {
    *("chunk", "select", "split", "narrow", "unbind", "getitem", "diagonal", "unfold"),
    *("expand", "expand_as", "flatten", "ravel", "reshape", "unflatten", "view", "view_as"),
    *("movedim", "permute", "squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze"),
    *("bfloat16", "contiguous", "detach", "float", "half", "to", "type", "type_as"),
    *("dropout", "getattr"),
}
"""Functions and methods whose output may share the memory of their input."""
_WRITING = {*(function.__name__ for function in ARITHMETIC), "setitem"}
"""Functions without a trailing underscore that write into their first input."""
_MAP_DIMENSIONS = ((2, 3), [2, 3], (-2, -1), [-2, -1])


def _is_pair(*sizes: Any, shape: Any = (), **_: Any) -> bool:
    listed = bool(sizes) and isinstance(sizes[0], list | tuple)
    return len((sizes[0] if listed else sizes) or shape) == 2


_FLATTENING: dict[str, Callable[..., bool]] = {
    "flatten": lambda start_dim=0, end_dim=-1, **_: (start_dim, end_dim) == (1, -1),
    # Global average pooling, in networks without another flattening.
    "mean": lambda dim=(), keepdim=False, **_: not keepdim and dim in _MAP_DIMENSIONS,
    "reshape": _is_pair,
    "view": _is_pair,
}
"""Name -> whether these arguments after the tensor convert (B, C, H, W) to (B, features)."""


class Operations:
    """The operations of a network, in order.

    Args:
        network: the module that owns the weights.
        graph: graph of the operations.

    Attributes:
        entry: node of the network's input.
        nodes: the operations, in order of execution.
        output: output of the network.
        sizes: the operations that read or compute sizes.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        # A reference to weights is not an operation: every stage has its own references.
        self.entry: fx.Node
        self.entry, *nodes, end = (node for node in graph.nodes if node.op != "get_attr")
        self.nodes: list[fx.Node] = nodes
        self.output: Argument = end.args[0]
        self.sizes = Sizes(network, graph)
        self._network = network
        self._parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
        order = {node: at for at, node in enumerate(nodes)}
        self._last_use = {
            node: max((order.get(user, len(nodes)) for user in node.users), default=-1)
            for node in (self.entry, *nodes)
        }

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that `node` calls; None for functions and methods."""
        calls = node.op == "call_module"
        return self._network.get_submodule(str(node.target)) if calls else None

    def weights(self, node: fx.Node) -> list[str]:
        """Paths of the module with weights, or of the parameters, that `node` uses."""
        module = self.module(node)
        if module is not None:
            return [str(node.target)] if next(module.parameters(), None) is not None else []
        used = (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
        return [path for path in used if path in self._parameters]

    def shape(self, path: str) -> tuple[int, ...]:
        """Shape of the parameter at `path`."""
        return tuple(self._network.get_parameter(path).shape)

    def is_norm(self, node: fx.Node) -> bool:
        module = self.module(node)
        return name_of(node) in _NORM_FUNCTIONS if module is None else isinstance(module, _NORMS)

    def flattens(self, node: fx.Node) -> bool:
        """Whether `node` converts (B, C, H, W) to (B, features)."""
        module = self.module(node)
        if module is not None:
            return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        test = _FLATTENING.get(name_of(node))
        return test is not None and test(*node.args[1:], **node.kwargs)

    def alive(self, at: int) -> list[fx.Node]:
        """Values computed before operation `at` that `at` or a later operation reads.

        Excludes the number of rows and numbers computed from it, which can be read from any tensor
        with rows."""
        return [node for node in self._alive(at) if node not in self.sizes.counts]

    def uses_earlier_rows(self, at: int) -> bool:
        """Whether `at` or a later operation uses a number of rows that was read before `at`."""
        return not self.sizes.counts.isdisjoint(self._alive(at))

    def can_cut(self, at: int) -> bool:
        """Whether a cut before operation `at` is possible."""
        alive = self.alive(at)
        known = not self.uses_earlier_rows(at) or self.sizes.tensors.issuperset(alive)
        return len(alive) == 1 and known and not self._overwritten(alive[0], at)

    def blocking_lines(self, at: int) -> list[str]:
        """Source lines that read the sizes which prevent a cut before operation `at`."""
        alive = self._alive(at)
        tensors = [node for node in alive if node not in self.sizes.all]
        if len(tensors) != 1 or self.can_cut(at) or self._overwritten(tensors[0], at):
            return []
        return [self.sizes.read_at(node) for node in alive if node in self.sizes.all]

    def _alive(self, at: int) -> list[fx.Node]:
        before = (self.entry, *self.nodes[:at])
        return [node for node in before if self._last_use[node] >= at]

    def _overwritten(self, tensor: fx.Node, at: int) -> bool:
        """Whether operation `at` or a later one writes into the memory of `tensor`."""
        shared = {tensor}
        for node in self.nodes[at:]:
            if not shared.isdisjoint(node.all_input_nodes):
                if self._written(node) in shared:
                    return True
                if self._may_share(node):
                    shared.add(node)
        return False

    def _written(self, node: fx.Node) -> object:
        module, name = self.module(node), name_of(node)
        if module is not None:
            in_place = bool(getattr(module, "inplace", False))
        else:
            method = name.endswith("_") and not name.endswith("__")
            in_place = method or name in _WRITING or bool(node.kwargs.get("inplace"))
        return node.all_input_nodes[0] if in_place else node.kwargs.get("out")

    def _may_share(self, node: fx.Node) -> bool:
        module = self.module(node)
        return name_of(node) in _SHARING if module is None else isinstance(module, _SHARING_MODULES)
