"""Shapes of the outputs of all segments, computed on the meta device if possible."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dglpipe.errors import ConfigError
from dglpipe.models.meta import NeedsValuesError, inspection, sample_batch
from dglpipe.partition.fx.signature import float_type
from dglpipe.partition.segments import TracedNetwork, extract_last_map


def propagate_shapes(
    traced: TracedNetwork, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> list[tuple[int, ...]]:
    """Runs a batch through the segments on the device of the network; on meta, this needs no memory
    and no arithmetic.

    Args:
        shape: shape of the batch, (B, C, H, W).
        dtype: dtype of the batch.

    Returns:
        Shape (B, ...) of the output of every segment. The last output is the logits.

    Raises:
        NeedsValuesError: a segment on meta reads values of tensors.
        ImageSizeError: the output of a segment is empty, or a segment fails on its input.
        ConfigError: a segment does not return one tensor with one row per row of the batch.
    """
    known = traced.outputs.get(tuple(shape))
    if known is not None:
        return known
    shapes = _run(traced, shape, dtype)
    if any(map(traced.operations.uses_earlier_rows, traced.starts[1:])):
        # A stage reads the number of rows from its input. Two batch sizes show that dimension 0
        # is the batch, and not another dimension of equal size.
        _run(traced, (shape[0] + 1, *shape[1:]), dtype)
    traced.outputs[tuple(shape)] = shapes
    return shapes


def _run(traced: TracedNetwork, shape: Sequence[int], dtype: torch.dtype) -> list[tuple[int, ...]]:
    batch = sample_batch(shape, traced.device, dtype)
    shapes = []
    known: dict[tuple[object, ...], Tensor] = {}
    for at, segment in enumerate(traced.segments):
        key = traced.signatures[at], batch.shape, batch.stride(), batch.dtype
        if key in known:
            batch = known[key]
            shapes.append(tuple(batch.shape))
            continue
        piece = traced.piece(at)
        try:
            with torch.no_grad(), inspection(traced.device):
                output = piece(batch)
        except Exception as error:  # RuntimeError, ValueError or IndexError for wrong shapes
            if batch.is_meta and "meta tensor" in str(error).lower():
                raise NeedsValuesError("model", segment.name, "shapes alone", str(error)) from error
            raise _size_error(traced, at, batch, shape, str(error)) from error
        if not isinstance(output, Tensor) or output.shape[:1] != batch.shape[:1]:
            got = f"{type(output).__name__} from segment {at} ({segment.name})"
            raise ConfigError("model", got, "one tensor with one row per row of the batch")
        if not output.numel():
            raise _size_error(traced, at, batch, shape, "Its output is empty")
        batch = known[key] = output
        shapes.append(tuple(output.shape))
    return shapes


def row_before_pools(traced: TracedNetwork, at: int, row: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of one row in front of the pools at the end of segment `at`; None without pools.

    Args:
        row: shape of one input row of the segment.
    """
    parts = traced.piece_without_pools(at)
    return None if parts is None else output_row(traced, parts[0], row)


def last_channels(traced: TracedNetwork, row: Sequence[int]) -> int | None:
    """Channels of the map that the classifier of the network flattens; None if there is none.

    Args:
        row: shape of one input row of the last segment.
    """
    module = extract_last_map(traced)
    found = row if module is None else output_row(traced, module, row)
    return found[0] if len(found) == 3 else None


def output_row(traced: TracedNetwork, module: nn.Module, row: Sequence[int]) -> tuple[int, ...]:
    """Shape of one output row of `module`, a part of the network.

    Args:
        row: shape of one input row.
    """
    dtype = float_type(module.parameters())
    with torch.no_grad(), inspection(traced.device):
        output: Tensor = module(sample_batch((2, *row), traced.device, dtype))
    return tuple(output.shape[1:])


class ImageSizeError(ConfigError):
    """An image size that a network does not support.

    Args:
        reason: why the segment fails.
        advice: a configuration that could work.
    """

    def __init__(self, got: object, allowed: str, reason: str, advice: str) -> None:
        super().__init__("data.image_size", got, allowed, f"{reason}. {advice}")
        self.reason = reason


_PROXY = re.compile(r"Proxy\([^)]*\)")
"""The name that `torch.fx` gives to a size in the message of a traced assertion."""


def _size_error(
    traced: TracedNetwork, at: int, batch: Tensor, shape: Sequence[int], reason: str
) -> ConfigError:
    name = traced.segments[at].name
    own = float_type(traced.piece(at).parameters(), batch.dtype)
    if own != batch.dtype and "type" in reason:
        got = f"weights of {own} in segment {at} ({name})"
        allowed = f"weights of {batch.dtype}, the dtype of their input"
        hint = f"Call network.to({batch.dtype}). {reason.splitlines()[0]}"
        return ConfigError("model", got, allowed, hint)
    if at == 0 and "channel" in reason:
        got, wanted = f"images of {shape[1]} channels", "the number of channels of the network"
        return ConfigError("model", got, wanted, f"Segment 0 ({name}): {reason.splitlines()[0]}")
    allowed = f"images that segment {at} ({name}) of the network supports"
    first_line = _PROXY.sub("another", reason.partition("\n")[0])
    reason = f"It fails on rows of shape {tuple(batch.shape[1:])}: {first_line}"
    height, width = shape[-2:]
    if height != width:
        advice = "The images are not square: data.image_size=SIDE makes them square"
        return ImageSizeError(f"images of {height}x{width}", allowed, reason, advice)
    advice = "Some builders have an argument for the size: model.args={image_size:SIDE}"
    return ImageSizeError(width, allowed, reason, advice)
