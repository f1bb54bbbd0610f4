"""Building and running modules on the meta device: shapes without memory or arithmetic."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from dglpipe.errors import ConfigError

META = torch.device("meta")

FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)
"""Functions that write initial weights; `torch.nn.init` calls them."""


@contextlib.contextmanager
def building(meta: bool, seed: int) -> Iterator[None]:
    """Context in which modules are built from `seed`; restores the caller's random state.

    Args:
        meta: move parameters and buffers to the meta device when a module registers them,
            before they are filled. Other tensors stay real, since some builders compute with
            other tensors (RegNet).

    Raises:
        ConfigError: a tensor of the module cannot be allocated.
    """
    filling = _SkipFills() if meta else contextlib.nullcontext()
    placing = _registering_on_meta() if meta else contextlib.nullcontext()
    with placing, torch.random.fork_rng(devices=[]), filling:
        torch.default_generator.manual_seed(seed)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _is_too_large(error):
                raise
            reason = f"{error}".partition("\n")[0]
            raise ConfigError(
                "model",
                "weights that cannot be allocated",
                "networks and heads whose weights fit into memory",
                f"Reduce model.width, data.classes or data.image_size ({reason})",
            ) from error


_TOO_LARGE = ("can't allocate memory", "not enough memory", "overflow", "out of memory")
"""Parts of the messages of torch for a tensor that cannot exist."""


def _is_too_large(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(part in text for part in _TOO_LARGE)


@contextlib.contextmanager
def registration_hooks(on_parameter: Any, on_buffer: Any = None) -> Iterator[None]:
    """Context that calls the hooks at every registration.

    A hook maps (module, name, tensor) to the tensor to register, or to None for no change.
    According to the annotations of torch a hook returns None; the documentation and the code of
    torch use the returned tensor.
    """
    hooks = [module_hooks.register_module_parameter_registration_hook(on_parameter)]
    if on_buffer is not None:
        hooks.append(module_hooks.register_module_buffer_registration_hook(on_buffer))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _registering_on_meta() -> contextlib.AbstractContextManager[None]:
    known = WeakTensorKeyDictionary()  # keeps tied parameters tied

    def on_parameter(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        if parameter not in known:
            known[parameter] = meta_parameter(parameter)
        return known[parameter]

    def on_buffer(_module: nn.Module, _name: str, buffer: Tensor | None) -> Tensor | None:
        return buffer if buffer is None else buffer.to("meta")

    return registration_hooks(on_parameter, on_buffer)


def meta_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter like `parameter` on the meta device."""
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


class _SkipFills(TorchFunctionMode):
    """Skips filling tensors on meta, which takes long and has no effect."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class NeedsValuesError(ConfigError):
    """A network reads values of tensors, so it cannot run on the meta device."""


def sample_batch(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A batch on `device`: random numbers, the same in every call; without values on meta."""
    if device.type == "meta":
        return torch.empty(*shape, device=device, dtype=dtype)
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def inspection(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Context for a forward that determines shapes: fast on meta; on other devices it restores the
    random state."""
    if device.type == "meta":
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
    """Replaces the most common operations by an empty tensor with the shape of their output.

    On the meta device, torch decomposes these operations in Python. The decomposition takes most
    of the time of a forward, and the first call imports `torch._dynamo`, which takes seconds.
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
    """A copy of `network` for a forward, which may change its modules.

    Args:
        values: whether to copy the weights; False: parameters and buffers of the copy are on meta.
    """
    if values:
        return copy.deepcopy(network)
    memo: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in network.buffers()}
    for weights in network.parameters():
        empty = torch.empty_like(weights, device="meta")
        memo[id(weights)] = nn.Parameter(empty, requires_grad=weights.requires_grad)
    return copy.deepcopy(network, memo)
