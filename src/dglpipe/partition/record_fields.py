"""Records the format of the activations that each stage sends, by a forward of two rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dglpipe.config import Config
from dglpipe.partition.segments import TracedNetwork
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import ACTIVATIONS, Field, recorded_field
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.pipeline.stage_module import cast_input

CPU = Device(torch.device("cpu"), "gloo")


def record_fields(
    config: Config, stages: Sequence[nn.Module], image_shape: Sequence[int]
) -> tuple[Field, ...]:
    """Shape, strides and dtype of the activations that each stage except the last sends.

    Args:
        stages: the stages with weights, on the CPU.
        image_shape: shape of one image, (C, H, W).
    """
    batch, fields = _images(image_shape), []
    for j, stage in enumerate(stages[:-1]):
        precision = config.stage(j).precision.name
        stage.eval()
        with torch.no_grad(), CPU.autocast(precision):
            batch = stage(cast_input(batch, precision))
        stage.train()
        fields.append(recorded_field(ACTIVATIONS, PRECISIONS[precision].dtype, batch))
        batch = batch.to(PRECISIONS[precision].dtype)
    return tuple(fields)


def record_fields_on_meta(
    config: Config, traced: TracedNetwork, bounds: Sequence[int], image_shape: Sequence[int]
) -> tuple[Field, ...]:
    """As `record_fields`, for a network on meta.

    Runs real kernels, since strides on meta can differ: copies each segment with weights of zeros,
    runs its forward, and deletes the copy. Equal segments run once.
    """
    batch, fields = _images(image_shape), []
    known: dict[tuple[Any, ...], Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        for j, (first, end) in enumerate(itertools.pairwise(bounds)):
            precision = config.stage(j).precision.name
            batch = cast_input(batch, precision)
            for at in range(first, end):
                piece = traced.piece(at)
                key = (
                    precision,
                    traced.signatures[at],
                    _layout(batch),
                    *map(_layout, _tensors(piece)),
                )
                if key not in known:
                    segment = _with_zeros(piece).eval()
                    with torch.no_grad(), CPU.autocast(precision):
                        known[key] = segment(batch)
                batch = known[key]
            fields.append(recorded_field(ACTIVATIONS, PRECISIONS[precision].dtype, batch))
            batch = batch.to(PRECISIONS[precision].dtype)
    return tuple(fields)


def _images(shape: Sequence[int]) -> Tensor:
    return torch.zeros(2, *shape).to(memory_format=torch.channels_last)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _with_zeros(piece: fx.GraphModule) -> fx.GraphModule:
    """A copy of a module on meta whose parameters and buffers are zeros on the CPU."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(piece):
        zeros = torch.zeros_like(tensor, device="cpu")
        if isinstance(tensor, nn.Parameter):
            zeros = nn.Parameter(zeros, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = zeros
    return copy.deepcopy(piece, memo)
