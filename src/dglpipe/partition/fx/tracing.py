"""A network as a graph of operations, by symbolic tracing (`torch.fx`).

Modules of torch.nn other than Sequential are one operation each; so are convolutions and batch
norms derived from them, what timm declares untraceable, and modules that turn out so.
"""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument, map_aggregate

from dglpipe.errors import ConfigError
from dglpipe.partition.fx import inplace_ops
from dglpipe.partition.fx.batch_dim import READ_AT, read_rows_early, reads_shape
from dglpipe.partition.fx.grad_modes import ModesError, gradients, modes
from dglpipe.partition.fx.inplace_ops import InPlaceProxy
from dglpipe.partition.fx.signature import name_of
from dglpipe.partition.fx.validate import has_backward_hooks


def symbolic_graph(network: nn.Module) -> fx.Graph:
    """Traces `network`, on any device, meta included, without running it.

    Only the first argument of its forward is an input; the others keep their defaults. Of an
    output that is a tuple, a list or a dict, the first entry that is computed is the logits; what
    only the others need (auxiliary classifiers) is left out. An argument that is `self.training` in
    the forward reads that of the module which runs the graph. Tensors that the forward makes
    become plain attributes of the network. A module inside it that cannot be traced, or does
    other operations in training than in evaluation, is one operation, unless it holds more
    than half of the weights. A child of a network that is an `nn.Sequential` may hold any
    share: that is how boundaries are given by hand. A module in which `torch.no_grad`, autocast
    and the like are entered cannot be traced.

    Raises:
        ConfigError: the network cannot be traced, or does other operations in training than
            in evaluation.
    """
    training = [(module, module.training) for module in network.modules()]
    whole: set[type[nn.Module] | str] = set()
    try:
        while True:
            try:
                learning = _trace(network.train(), whole)
                graph = _merged(learning, _trace(network.eval(), whole))
                read_rows_early(graph)
                return graph
            except _PartError as error:
                part = _part(network, error.path, whole)
                if part is None:
                    raise error.mistake from error.__cause__
                whole.add(part)
    finally:
        for module, mode in training:
            module.training = mode


class _PartError(Exception):
    """A part of the network that stands in the way.

    Args:
        path: of the innermost module to which it belongs; empty for the network itself.
        mistake: what to say if nothing can be done.
    """

    def __init__(self, path: str, mistake: ConfigError) -> None:
        super().__init__(path)
        self.path = path
        self.mistake = mistake


def _part(
    network: nn.Module, path: str, whole: Set[type[nn.Module] | str]
) -> type[nn.Module] | str | None:
    """The class of the module at `path`, or of the innermost one around it, that may be one
    operation; the path of a part that was made by hand; None: there is nothing."""
    while path:
        kind = type(network.get_submodule(path))
        alike = [module for module in network.modules() if type(module) is kind]
        small = 2 * max(map(_size, alike)) <= _size(network)
        if small and not issubclass(kind, _CONTAINERS) and kind not in whole:
            return kind
        if isinstance(network, nn.Sequential) and "." not in path and path not in whole:
            return path
        path = path.rpartition(".")[0]
    return None


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_WHOLE = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""Libraries derive from these what looks at sizes or counts batches in its forward."""


class _Tracer(fx.Tracer):
    """Follows the first argument; the others keep their defaults, None most often."""

    # Buffers in arithmetic stay references: as constants they would leave the state_dict.
    proxy_buffer_attributes = True

    def __init__(self, whole: Set[type[nn.Module] | str]) -> None:
        # A network of timm is there only if timm has been imported.
        timm = sys.modules.get("timm.layers")
        super().__init__(autowrap_functions=tuple(timm.get_notrace_functions()) if timm else ())
        kinds = (one for one in whole if not isinstance(one, str))
        self._whole = (*_WHOLE, *kinds, *(timm.get_notrace_modules() if timm else ()))
        self._paths = {one for one in whole if isinstance(one, str)}
        self._modes = modes()
        self.failed: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = module_qualified_name in self._paths or has_backward_hooks(m)
        return (
            named or isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return InPlaceProxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if kind != "get_attr":
            self._check_modes()
        node = super().create_node(kind, *args, **kwargs)
        if reads_shape(node):
            node.meta[READ_AT] = _line()
        return node

    def _check_modes(self) -> None:
        if modes() != self._modes:
            raise ModesError("torch.fx does not record modes")

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._check_modes()  # here, for it is the caller's doing
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m  # the innermost comes first
            raise

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "batch", (), {})]


@dataclass(frozen=True, slots=True)
class _Trace:
    graph: fx.Graph
    constants: dict[str, str]
    """Values of the tensors that the forward makes, by the name of their attribute."""


_CONSTANT = "_tensor_constant"
"""How `torch.fx` names the attributes that it adds for tensors made in a forward."""


def _trace(network: nn.Module, whole: Set[type[nn.Module] | str]) -> _Trace:
    """Traces `network` in the mode it is in.

    Tensors that its forward makes become plain attributes of it, on the weights' device.

    Args:
        whole: classes and paths of modules that are one operation each.

    Raises:
        _PartError: it cannot be traced.
    """
    stale = [name for name in vars(network) if name.startswith(_CONSTANT)]
    for name in stale:
        delattr(network, name)
    with gradients():
        tracer = _Tracer(whole)
        try:
            graph = tracer.trace(network)
        except Exception as error:  # whatever a forward does with what is no tensor
            path = tracer.path_of_module(tracer.failed) if tracer.failed is not None else ""
            raise _PartError(path, _mistake(error, network)) from error
    constants = {name: str(value) for name, value in vars(network).items() if _CONSTANT in name}
    device = next((weights.device for weights in network.parameters()), None)
    for name in constants:
        setattr(network, name, getattr(network, name).to(device))
    _leave_logits(graph, type(network).__name__)
    return _Trace(graph, constants)


def _mistake(error: Exception, network: nn.Module) -> ConfigError:
    """What to say of `error`, which came up while `network` was traced."""
    scene = _scene(error, network)
    if isinstance(error, ModesError):
        return ConfigError("model", scene, error.ALLOWED, error.HINT)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = (
        "Keep Python decisions on values out of forward, hide the operation in a function "
        "under torch.fx.wrap, or give the boundaries by hand: a builder (model=custom) "
        "of an nn.Sequential, whose parts may be anything. "
        f"{reason}"
    )
    return ConfigError("model", scene, "a network that torch.fx can trace", hint)


def _leave_logits(graph: fx.Graph, name: str) -> None:
    """Reduces an output of several values to the first, and drops what only others need.

    Raises:
        ConfigError: nothing of the output is computed.
    """
    end = next(node for node in reversed(graph.nodes) if node.op == "output")
    others = _needed(end.all_input_nodes)
    value: Any = end.args[0]
    while parts := _parts(value):
        # {"loss": None, "logits": ...}: None is no output.
        value = next((part for part in parts if _computed(part)), None)
    if not isinstance(value, fx.Node):
        got, allowed = f"{name}, which gives no tensor", "a network whose output has its logits"
        raise ConfigError("model", got, allowed)
    end.args = (value,)
    needed = _needed(end.all_input_nodes)
    # What writes into a tensor of the logits alters them.
    spare = others - _needed([*needed, *(node for node in others if _written(node) in needed)])
    for node in reversed(graph.nodes):
        if node in spare and not node.users and node.op != "placeholder":
            graph.erase_node(node)


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor into which a function or a method writes by its name."""
    name = name_of(node)
    writes = name in _ARITHMETIC or (name.endswith("_") and not name.endswith("__"))
    called = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
    return node.all_input_nodes[0] if called and writes else None


_ARITHMETIC = {function.__name__ for function in inplace_ops.ARITHMETIC}


def _computed(value: Any) -> bool:
    """Whether `value` is an operation's, or holds one that is."""
    return isinstance(value, fx.Node) or any(map(_computed, _parts(value)))


def _parts(value: Any) -> list[Any]:
    """What a tuple, a list, a dict, or an operation that makes a named tuple, is made of."""
    if isinstance(value, fx.Node):
        named = isinstance(value.target, type) and issubclass(value.target, tuple)
        return [*value.args, *value.kwargs.values()] if named else []
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else []


def _needed(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """`nodes`, and all that they are computed from."""
    needed: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _scene(error: Exception, network: nn.Module) -> str:
    """The line of the user's code in which tracing failed."""
    own = [at for at in traceback.extract_tb(error.__traceback__) if _is_users(at.filename)]
    name = type(network).__name__
    return f"{name}: {own[-1].line} ({own[-1].filename}:{own[-1].lineno})" if own else name


_LIBRARY = (str(Path(torch.__file__).parent), __file__, inplace_ops.__file__, "<")


def _is_users(filename: str) -> bool:
    return not filename.startswith(_LIBRARY)


def _line() -> str:
    """The line of the user's code that is being traced."""
    frame = inspect.currentframe()
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return ""
    filename, number = frame.f_code.co_filename, frame.f_lineno
    return f"{linecache.getline(filename, number).strip()} ({filename}:{number})"


def _merged(learning: _Trace, testing: _Trace) -> fx.Graph:
    """The graph of `testing`, with the mode in the place of arguments that are True in
    training and False in evaluation."""
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


def _is_same(one: fx.Node, other: fx.Node, learning: _Trace, testing: _Trace) -> bool:
    """Whether two nodes do the same, their arguments aside."""
    values = [
        trace.constants.get(str(node.target)) for trace, node in ((learning, one), (testing, other))
    ]
    if None not in values:
        return values[0] == values[1]
    return (one.op, one.target) == (other.op, other.target)


_MISSING = object()


class _DifferenceError(Exception):
    """Two arguments differ otherwise than by the mode."""


class _Modes:
    """Writes the mode of the module that runs the graph into arguments.

    Args:
        graph: gets a node that reads `training` where one is needed.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._node: fx.Node | None = None

    def blend(self, learning: Argument, testing: Argument, same: Mapping[fx.Node, fx.Node]) -> Any:
        """`testing`, with the mode where `learning` says True and it says False.

        Args:
            same: nodes of the one graph, and those of the other that do the same.
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


def _differing(node: fx.Node) -> _PartError:
    where = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    got = f"{name_of(node)}{f' in {where[-1]}' if where else ''}"
    hint = "An argument may be self.training; what is done may not depend on it otherwise"
    mistake = ConfigError("model", got, "the same operations in training and evaluation", hint)
    return _PartError(where[-1] if where else "", mistake)
