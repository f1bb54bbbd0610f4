"""A network as a graph of operations, by symbolic tracing (`torch.fx`).

Each module of torch.nn except Sequential is one operation, and so is each subclass of a convolution
or batch norm, each module that timm declares untraceable, and each module whose trace fails.
"""

from __future__ import annotations

import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from dglpipe.errors import ConfigError
from dglpipe.partition.fx import inplace_ops
from dglpipe.partition.fx.batch_dim import READ_AT, read_rows_early, reads_shape
from dglpipe.partition.fx.grad_modes import ModesError, gradients, modes
from dglpipe.partition.fx.inplace_ops import InPlaceProxy
from dglpipe.partition.fx.merge_modes import Trace, merged
from dglpipe.partition.fx.opaque import UntraceableError, opaque_part
from dglpipe.partition.fx.outputs import keep_logits
from dglpipe.partition.fx.validate import has_backward_hooks


def symbolic_graph(network: nn.Module) -> fx.Graph:
    """Traces `network` without running it, on any device, including meta.

    - Only the first argument of the forward is an input; the others keep their defaults.
    - If the output is a tuple, a list or a dict, its first computed entry is the logits.
      Operations that only other entries need (auxiliary classifiers) are removed.
    - An argument that is `self.training` becomes the mode of the module that runs the graph.
    - Tensors that the forward creates become plain attributes of the network.
    - A module that cannot be traced, or whose operations differ between training and evaluation,
      is one operation, unless it holds more than half of the weights. The children of a network
      that is an `nn.Sequential` have no such limit, so that the user can set the boundaries.
    - A module that enters `torch.no_grad`, autocast or a similar context cannot be traced.

    Raises:
        ConfigError: the network cannot be traced, or its operations differ between training and
            evaluation.
    """
    training = [(module, module.training) for module in network.modules()]
    whole: set[type[nn.Module] | str] = set()
    try:
        while True:
            try:
                learning = _trace(network.train(), whole)
                graph = merged(learning, _trace(network.eval(), whole))
                read_rows_early(graph)
                return graph
            except UntraceableError as error:
                part = opaque_part(network, error.path, whole)
                if part is None:
                    raise error.user_error from error.__cause__
                whole.add(part)
    finally:
        for module, mode in training:
            module.training = mode


_WHOLE = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""Classes of modules whose subclasses in libraries are also one operation each: their forward reads
sizes or counts batches."""


class _Tracer(fx.Tracer):
    """Traces the first argument of a forward; the other arguments keep their defaults."""

    # Buffers in arithmetic stay references: constants would not be in the state_dict.
    proxy_buffer_attributes = True

    def __init__(self, whole: Set[type[nn.Module] | str]) -> None:
        # If timm is not imported, the network contains no module of timm.
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
            raise ModesError("torch.fx does not record this mode")

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._check_modes()  # the caller may have changed the mode
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m  # the innermost module is set first
            raise

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "batch", (), {})]


_CONSTANT = "_tensor_constant"
"""Prefix of the attributes that `torch.fx` adds for tensors created in a forward."""


def _trace(network: nn.Module, whole: Set[type[nn.Module] | str]) -> Trace:
    """Traces `network` in its current mode.

    Tensors that the forward creates become plain attributes of the network, on the device of the
    weights.

    Args:
        whole: classes and paths of modules to trace as one operation.

    Raises:
        UntraceableError: the network cannot be traced.
    """
    stale = [name for name in vars(network) if name.startswith(_CONSTANT)]
    for name in stale:
        delattr(network, name)
    with gradients():
        tracer = _Tracer(whole)
        try:
            graph = tracer.trace(network)
        except Exception as error:  # a forward that receives proxies may raise any exception
            path = tracer.path_of_module(tracer.failed) if tracer.failed is not None else ""
            raise UntraceableError(path, _to_user_error(error, network)) from error
    constants = {name: str(value) for name, value in vars(network).items() if _CONSTANT in name}
    device = next((weights.device for weights in network.parameters()), None)
    for name in constants:
        setattr(network, name, getattr(network, name).to(device))
    keep_logits(graph, type(network).__name__)
    return Trace(graph, constants)


def _to_user_error(error: Exception, network: nn.Module) -> ConfigError:
    """Converts an `error` from tracing `network` to an error for the user."""
    location = _location(error, network)
    if isinstance(error, ModesError):
        return ConfigError("model", location, error.ALLOWED, error.HINT)
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    hint = (
        "Keep Python decisions on values out of forward, hide the operation in a function "
        "under torch.fx.wrap, or give the boundaries by hand: a builder (model=custom) "
        "of an nn.Sequential, whose parts may be any modules. "
        f"{reason}"
    )
    return ConfigError("model", location, "a network that torch.fx can trace", hint)


def _location(error: Exception, network: nn.Module) -> str:
    """The line of the user's code in which tracing failed."""
    own = [at for at in traceback.extract_tb(error.__traceback__) if _is_user_code(at.filename)]
    name = type(network).__name__
    return f"{name}: {own[-1].line} ({own[-1].filename}:{own[-1].lineno})" if own else name


_LIBRARY = (str(Path(torch.__file__).parent), __file__, inplace_ops.__file__, "<")


def _is_user_code(filename: str) -> bool:
    return not filename.startswith(_LIBRARY)


def _line() -> str:
    """The line of the user's code that is being traced."""
    frame = inspect.currentframe()
    while frame is not None and not _is_user_code(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return ""
    filename, number = frame.f_code.co_filename, frame.f_lineno
    return f"{linecache.getline(filename, number).strip()} ({filename}:{number})"
