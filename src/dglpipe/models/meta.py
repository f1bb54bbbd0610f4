"""Building modules without leaving a trace in the random state, with weights or without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode

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
