"""The form of every segment, for heads that resemble the layers above them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from dglpipe.models.features import Layer
from dglpipe.partition.channels import channels_at
from dglpipe.partition.fx.branches import is_bottleneck, residual_sums
from dglpipe.partition.segments import TracedNetwork


def network_layers(
    traced: TracedNetwork, rows: Sequence[tuple[int, ...]], width: int | None
) -> tuple[Layer, ...]:
    """The layers of a network, one per segment.

    Args:
        rows: shape of one input row of every segment.
        width: channels of the network's last map; None: the last segment has none, and is left
            out.
    """
    channels = [
        row[channels_at(traced.operations, start, row)]
        for start, row in zip(traced.starts[1:], rows[1:], strict=True)
    ]
    if width is not None:
        channels.append(width)
    return tuple(Layer(one, _kind(traced.piece(at), one)) for at, one in enumerate(channels))


def _kind(piece: fx.GraphModule, channels: int) -> str:
    if not residual_sums(piece):
        return "plain"
    return "bottleneck" if is_bottleneck(piece, channels) else "basic"
