"""Bytes that autograd saves for backward, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dglpipe.partition.fx.signature import float_type

ROWS = 2
"""Rows of the batch: batch norm needs at least two."""


@dataclass(frozen=True, slots=True)
class SavedBytes:
    """Tensors that one part of a network saves for backward, in bytes per sample in fp32.

    Attributes:
        own: tensors that no earlier part saves, including the input.
        input: the input, if it is in `own`; else 0.
        output: the output, if this part or an earlier part saves it; else 0.
    """

    own: int
    input: int
    output: int


def saved_bytes(
    parts: Sequence[nn.Module], shape: Sequence[int], input_gradient: bool = False
) -> list[SavedBytes]:
    """Runs `parts` in sequence and counts the tensors that each part saves.

    Args:
        parts: (B, ...) -> one tensor; on meta, unless they read values of tensors.
        shape: shape of one input row of the first part.
        input_gradient: whether backward also computes the gradient of the batch.
    """
    parameters = [tensor for part in parts for tensor in part.parameters()]
    weights = {tensor.untyped_storage()._cdata for tensor in parameters}
    # The graph keeps every saved tensor alive, so that no address is reused.
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes() // ROWS
        return tensor

    batch = counted_batch(shape, parameters, input_gradient)
    result = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), CheapOps():
        for part in parts:
            before = dict(saved)
            entrance = batch.untyped_storage()._cdata
            batch = part(batch)
            new = {key: size for key, size in saved.items() if key not in before}
            exit_ = batch.untyped_storage()._cdata
            own, output = sum(new.values()), saved.get(exit_, 0)
            result.append(SavedBytes(own, new.get(entrance, 0), output))
    return result


def counted_batch(shape: Sequence[int], weights: Iterable[Tensor], input_gradient: bool) -> Tensor:
    """A batch with the device and dtype of `weights`; on meta if there are no weights."""
    own = list(weights)
    device = next((tensor.device for tensor in own), torch.device("meta"))
    dtype = float_type(own)
    return torch.zeros(ROWS, *shape, device=device, dtype=dtype, requires_grad=input_gradient)


class CheapOps(TorchFunctionMode):
    """Replaces batch norm and ReLU by functions that save the same tensors.

    Neither operation counts in FLOPs, and both are slow on meta.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and func in (nn.functional.batch_norm, torch.batch_norm):
            return _SavesInput.apply(args[0])
        if args and func in (nn.functional.relu, torch.relu, torch.relu_):
            in_place = func is torch.relu_ or kwargs.get("inplace", args[1:2] == (True,))
            return _SavesOutput.apply(args[0], in_place)
        return func(*args, **kwargs)


class _SavesInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor) -> Tensor:
        ctx.save_for_backward(batch)
        return batch.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _SavesOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor, in_place: bool) -> Tensor:
        if in_place:
            ctx.mark_dirty(batch)
        output = batch if in_place else batch.clone()
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
