"""A network as a graph of operations, by symbolic tracing (`torch.fx`).

Modules of torch.nn other than Sequential are one operation each.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from dglpipe.errors import ConfigError


def symbolic_graph(network: nn.Module) -> fx.Graph:
    """Traces `network`, on any device, meta included, without running it.

    Only the first argument of its forward is an input; the others keep their defaults.
    Tensors that the forward makes become plain attributes of the network.

    Raises:
        ConfigError: the network cannot be traced, or does other operations in training than
            in evaluation (functional dropout, say: one trace would be wrong in one of them).
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        learning = _trace(network.train())
        testing = _trace(network.eval())
    finally:
        for module, training in modes:
            module.training = training
    _refuse_difference(learning, testing)
    return testing.graph


class _Tracer(fx.Tracer):
    """Follows the first argument; the others keep their defaults, None most often."""

    # Buffers in arithmetic stay references: as constants they would leave the state_dict.
    proxy_buffer_attributes = True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        return root_fn, [self.root, self.create_proxy("placeholder", "batch", (), {})]


@dataclass(frozen=True, slots=True)
class _Trace:
    graph: fx.Graph
    lines: list[str]
    """One a node, with all its arguments."""


_CONSTANT = "_tensor_constant"
"""How `torch.fx` names the attributes that it adds for tensors made in a forward."""


def _trace(network: nn.Module) -> _Trace:
    """Traces `network` in the mode it is in.

    Tensors that its forward makes become plain attributes of it, on the weights' device.
    """
    stale = [name for name in vars(network) if name.startswith(_CONSTANT)]
    for name in stale:
        delattr(network, name)
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # whatever a forward does with what is no tensor
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = (
            "Keep Python decisions on values out of forward, or hide the operation in a "
            f"function under torch.fx.wrap. {reason}"
        )
        allowed = "a network that torch.fx can trace"
        raise ConfigError("model", _scene(error, network), allowed, hint) from error
    constants = {name: str(value) for name, value in vars(network).items() if _CONSTANT in name}
    device = next((weights.device for weights in network.parameters()), None)
    for name in constants:
        setattr(network, name, getattr(network, name).to(device))
    return _Trace(graph, [_line(node, constants) for node in graph.nodes])


def _line(node: fx.Node, constants: dict[str, str]) -> str:
    value = constants.get(str(node.target), "")
    return f"{node.op} {node.target} {node.args} {node.kwargs} {value}"


def _scene(error: Exception, network: nn.Module) -> str:
    """The line of the user's code in which tracing failed."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    own = [at for at in frames if at.filename != __file__ and torch_folder not in at.filename]
    name = type(network).__name__
    return f"{name}: {own[-1].line} ({own[-1].filename}:{own[-1].lineno})" if own else name


def name_of(node: fx.Node) -> str:
    """Function or method of an operation, or the path of its module."""
    name: str = getattr(node.target, "__name__", str(node.target))
    return name


def _refuse_difference(learning: _Trace, testing: _Trace) -> None:
    lines = itertools.zip_longest(learning.lines, testing.lines)
    differing = next((at for at, (one, other) in enumerate(lines) if one != other), None)
    if differing is None:
        return
    longer = max(learning, testing, key=lambda trace: len(trace.lines))
    node = list(longer.graph.nodes)[differing]
    where = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    got = f"{name_of(node)}{f' in {where[-1]}' if where else ''}"
    hint = "Use a module (nn.Dropout, say) in place of an operation that reads self.training"
    raise ConfigError("model", got, "the same operations in training and evaluation", hint)
