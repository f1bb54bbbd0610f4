"""A fake accelerator: runs a step without a GPU.

Tensors on it are fake (shape, strides, dtype and device, no memory). Operations that would make
the host wait for a real device raise an error: `.item()` and other reads of values, operations
whose output size depends on values, and blocking copies to or from the host. An operation on
tensors of two devices also raises, as on a GPU.

A process can register one such device, and only before its first backward, so these tests run in a
separate process (`test_fake_accelerator.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "ghost"
aten = torch.ops.aten

NO_FAKE_KERNEL = (
    aten._fused_sgd_.default,
    aten._amp_foreach_non_finite_check_and_unscale_.default,
    aten._amp_update_scale_.default,
)
"""In-place operations without a fake version in torch: only the devices of tensors are checked."""


class BlockingCopyError(RuntimeError):
    """The host would wait for the device."""


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_AUTOCAST = "AutocastPrivateUse1"
_LIBRARIES = (
    torch.library.Library("_", "IMPL", _AUTOCAST),
    torch.library.Library("aten", "IMPL", _AUTOCAST),
)
"""Their rules go when they do."""


def register() -> None:
    """Registers the device, once in each process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    everything, aten_library = _LIBRARIES
    everything.fallback(torch.library.fallthrough_kernel, _AUTOCAST)
    for name in ("conv2d", "linear"):
        aten_library.impl(name, functools.partial(_cast, getattr(aten, name)), _AUTOCAST)


def _cast(operation: Any, *arguments: Any) -> Tensor:
    """Calls `operation` on arguments in the low precision, as autocast on CUDA does."""
    dtype = torch.get_autocast_dtype(NAME)
    low = [a.to(dtype) if isinstance(a, Tensor) else a for a in arguments]
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(key):
        return operation(*low)


class _Strict(TorchDispatchMode):
    """Raises where a copy would make the host wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default:
            target = kwargs.get("device") or args[0].device
            _check_copy(args[0].device, target, kwargs.get("non_blocking", False))
        elif func is aten.copy_.default:
            _check_copy(args[1].device, args[0].device, args[2] if len(args) > 2 else False)
        elif func in NO_FAKE_KERNEL:
            _check_devices(func, args)
            return args[0] if func is aten._amp_update_scale_.default else None
        return func(*args, **kwargs)


def _check_copy(source: torch.device, target: torch.device, non_blocking: bool) -> None:
    if source.type != target.type and not non_blocking:
        raise BlockingCopyError(f"blocking copy from {source} to {target}")


def _check_devices(func: Any, args: tuple[Any, ...]) -> None:
    devices = {leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {devices}")


@contextmanager
def ghost_mode() -> Iterator[torch.device]:
    """Fake tensors and strict copies inside. Yields the device."""
    with FakeTensorMode(allow_non_fake_inputs=False), _Strict():
        yield torch.device(NAME, 0)


def to_ghost(module: nn.Module, device: torch.device) -> None:
    """Puts `module` on the device; inside `ghost_mode`. (`Module.to` cannot swap fakes.)"""
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        moved[id(tensor)] = _ghost_of(tensor, device)
                    table[key] = moved[id(tensor)]  # type: ignore[assignment]
    module.to = lambda *args, **kwargs: module  # type: ignore[method-assign]


def _ghost_of(tensor: Tensor, device: torch.device) -> Tensor:
    ghost = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(ghost) if isinstance(tensor, nn.Parameter) else ghost
