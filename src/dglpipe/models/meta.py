"""Building modules without leaving a trace in the random state, with weights or without."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

from dglpipe.errors import ConfigError

FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
"""How initial weights are written, by `torch.nn.init` too."""


@contextlib.contextmanager
def building(meta: bool, seed: int) -> Iterator[None]:
    """Builds modules from `seed`, leaving the caller's random state as it was.

    Args:
        meta: weights move to the meta device as they are registered, before anything fills
            them. Other tensors stay real, for some builders compute with them (RegNet).
    """
    hooks = []
    filling: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if meta:
        filling = _Unfilled()
        # The hooks' type says None, their documentation and their code a new value.
        on_parameter: Any = _parameter_on_meta
        on_buffer: Any = _buffer_on_meta
        hooks.append(module_hooks.register_module_parameter_registration_hook(on_parameter))
        hooks.append(module_hooks.register_module_buffer_registration_hook(on_buffer))
    try:
        with torch.random.fork_rng(devices=[]), filling:
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _parameter_on_meta(
    _module: nn.Module, _name: str, parameter: nn.Parameter | None
) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return parameter
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _buffer_on_meta(_module: nn.Module, _name: str, buffer: Tensor | None) -> Tensor | None:
    return buffer if buffer is None else buffer.to("meta")


class _Unfilled(TorchFunctionMode):
    """On meta there is nothing to fill, and it takes long."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class NeedsValuesError(ConfigError):
    """A network that looks at values, where only shapes were there."""


def example(
    shape: Sequence[int], paper: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A batch on paper. Where values count it is not all zeros, and always the same."""
    if paper.type == "meta":
        return torch.empty(*shape, device=paper, dtype=dtype)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def looking(paper: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network is looked at: the quick one where only shapes count."""
    if paper.type == "meta":
        return ShapesOnly()
    return torch.random.fork_rng(devices=[])


_SAME_SHAPE = (
    nn.functional.batch_norm,
    torch.batch_norm,
    nn.functional.relu,
    torch.relu,
    torch.relu_,
)


class ShapesOnly(TorchFunctionMode):
    """Answers the commonest operations by the shape of their output.

    On the meta device these are decomposed in Python: most of the time of a forward, and the
    first call imports `torch._dynamo`, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and func in _SAME_SHAPE:
            return args[0]
        linear = func is nn.functional.linear and len(args) > 1
        if linear and args[0].shape[-1] == args[1].shape[-1]:
            return args[0].new_empty(*args[0].shape[:-1], len(args[1]))
        return func(*args, **(kwargs or {}))


def meta_copy(network: nn.Module, values: bool = False) -> nn.Module:
    """A copy of `network` to look at: a forward may leave something behind in its modules.

    Args:
        values: with its numbers; otherwise its parameters and buffers are on meta.
    """
    if values:
        return copy.deepcopy(network)
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in network.buffers()}
    for weights in network.parameters():
        empty = torch.empty_like(weights, device="meta")
        memo[id(weights)] = nn.Parameter(empty, requires_grad=weights.requires_grad)
    return copy.deepcopy(network, memo)
