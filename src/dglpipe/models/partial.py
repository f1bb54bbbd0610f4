"""Building a network and storing only some of its parameters.

All parameters are initialised in the order of construction, so that the stored parameters have the
same values as in a network built as a whole. The other parameters are on the meta device.
Operations on such a parameter run on a temporary tensor, which is dropped when the next parameter
that is not stored is registered or initialised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dglpipe.models.meta import building, meta_parameter, registration_hooks


class PartialBuildError(Exception):
    """The network cannot be built in part and must be built as a whole."""


@dataclass(frozen=True, slots=True)
class Registrations:
    """The parameters that modules registered while a network was built, in order.

    Attributes:
        kinds: (class of the module, name, shape, dtype) of each parameter.
        parameters: the parameters, on meta.
    """

    kinds: list[tuple[Any, ...]] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)


@contextlib.contextmanager
def recording(seed: int) -> Iterator[Registrations]:
    """Context in which modules are built on meta, as in `building(True, seed)`."""
    found = Registrations()

    def on_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            found.kinds.append(_kind(module, name, parameter))
            found.parameters.append(parameter)

    with building(True, seed), registration_hooks(on_parameter):
        yield found


@contextlib.contextmanager
def building_stored(
    seed: int, kinds: Sequence[tuple[Any, ...]], stored: Sequence[bool]
) -> Iterator[None]:
    """Context in which modules are built as in `building(False, seed)`, with the parameters that
    are not `stored` on meta. Buffers are real tensors.

    Args:
        kinds: `Registrations.kinds` of a recorded build of the same network.
        stored: for each registration, whether to store the parameter.

    Raises:
        PartialBuildError: this build registers other parameters than `kinds`, or reads a
            parameter whose values were dropped.
    """
    temporary = _TemporaryValues()
    numbers = iter(range(len(kinds)))

    def on_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None:
            return None
        at = next(numbers, None)
        if at is None or kinds[at] != _kind(module, name, parameter):
            raise PartialBuildError(f"another parameter was registered: {name}")
        with torch._C.DisableTorchFunction():  # reads the true device, see _SeemsReal
            return parameter if stored[at] or parameter.is_meta else temporary.replace(parameter)

    with registration_hooks(on_parameter), building(False, seed), temporary, _SeemsReal():
        yield
    if next(numbers, None) is not None:
        raise PartialBuildError("fewer parameters were registered")


def _kind(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[Any, ...]:
    return type(module), name, tuple(parameter.shape), parameter.dtype, parameter.requires_grad


_FILLS = {
    *("aten::fill_", "aten::zero_", "aten::normal_", "aten::uniform_", "aten::random_"),
    *("aten::bernoulli_", "aten::exponential_", "aten::cauchy_", "aten::log_normal_"),
    *("aten::geometric_", "aten::copy_"),
}
"""Operations that write all values of their first argument and read none of its values."""
_FACTORIES = {
    *("aten::new_empty", "aten::new_zeros", "aten::new_ones", "aten::new_full"),
    *("aten::empty_like", "aten::zeros_like", "aten::ones_like", "aten::full_like"),
    *("aten::rand_like", "aten::randn_like", "aten::randint_like", "aten::new_empty_strided"),
}
"""Operations that read only the shape of their first argument."""


class _TemporaryValues(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations on parameters that are not stored, on temporary values.

    Only the parameter that was registered or filled last has values. All parameters share one
    buffer for their values, since the allocator would not reuse the memory of separate buffers.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch imports its compiler for this mode, which takes seconds."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner: Tensor | None = None
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def replace(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter on meta with the values of `parameter` as temporary values."""
        empty = meta_parameter(parameter)
        self._own(empty.detach())
        self._view(empty.detach()).copy_(parameter.detach())
        return empty

    def _own(self, owner: Tensor) -> None:
        """Assigns the buffer to `owner`, which is on meta, and drops the previous values."""
        self._owner = owner
        size = owner.untyped_storage().nbytes()
        if size > self._buffer.numel():
            self._buffer = torch.empty(0, dtype=torch.uint8)  # freed before the next line
            self._buffer = torch.empty(size, dtype=torch.uint8)

    def _view(self, tensor: Tensor) -> Tensor:
        """The values of `tensor`, which is on meta and shares memory with the owner."""
        size = tensor.untyped_storage().nbytes()
        values = self._buffer[:size].view(tensor.dtype)
        return values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        empty = [one for one in tensors if one.is_meta]
        if not empty or func.is_view:
            return func(*args, **kwargs)
        name = func._schema.name
        real: dict[int, Tensor] = {}
        for one in empty:
            is_first = one is args[0] and all(one is not other for other in args[1:])
            real[id(one)] = self._real(one, is_first and name in _FILLS, name)
        back = {id(real[id(one)]): one for one in empty}

        def returned(value: Any) -> Any:
            if isinstance(value, Tensor) and id(value) not in back:
                return value.clone() if _shares_memory(value, self._buffer) else value
            return back.get(id(value), value)

        args, kwargs = tree_map(lambda one: real.get(id(one), one), (args, kwargs))
        return tree_map(returned, func(*args, **kwargs))

    def _real(self, tensor: Tensor, is_filled: bool, name: str) -> Tensor:
        """Memory with the values of `tensor`, which is on meta."""
        if self._owner is not None and _shares_memory(self._owner, tensor):
            return self._view(tensor)
        if not is_filled and name not in _FACTORIES:
            raise PartialBuildError(f"{name} reads a parameter whose values were dropped")
        if is_filled and tensor.untyped_storage().nbytes() == tensor.nbytes:
            self._own(tensor.detach())
            return self._view(tensor)
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


_CPU = torch.device("cpu")
_TENSOR: Any = Tensor
_DEVICE, _IS_META = _TENSOR.device.__get__, _TENSOR.is_meta.__get__


class _SeemsReal(TorchFunctionMode):
    """Hides the meta device from builders, because some skip the initialisation on meta."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func == _DEVICE and args[0].is_meta:
            return _CPU
        if func == _IS_META:
            return False
        return func(*args, **(kwargs or {}))
