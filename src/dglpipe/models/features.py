"""What a stage hands on, as a head reads it: maps (B,C,H,W) or vectors (B,C).

| a row of the link | head reads |
|---|---|
| (C,H,W) | as it is |
| (H,W,C), channels last | (C,H,W) |
| (T,C) or (C,T), tokens | (C), their mean |
| (C) | as it is |

Which dimension holds the channels cannot be told from the shape: it is the one that the next
operation with weights consumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from dglpipe.errors import ConfigError
from dglpipe.partition.fx.graph import Operations
from dglpipe.partition.fx.nodes import name_of

_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.PReLU,
)
"""Modules that consume dimension 1; all others with weights consume the last."""
_FIRST_FUNCTIONS = {
    *("conv1d", "conv2d", "conv3d", "batch_norm", "group_norm", "instance_norm", "prelu"),
}
_ARITHMETIC = {"add", "iadd", "mul", "imul", "sub", "isub", "truediv", "itruediv"}
_SAME = {
    *_ARITHMETIC,
    *("clone", "contiguous", "to", "float"),
    *("relu", "relu_", "gelu", "silu", "hardswish", "sigmoid", "dropout", "stochastic_depth"),
}
"""Functions and methods that leave every dimension where it is."""
_SAME_MODULES = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


@dataclass(frozen=True, slots=True)
class Features:
    """One row of what a stage hands on.

    Attributes:
        shape: without the dimension of the batch.
        channels_at: which dimension of `shape` holds the channels.
    """

    shape: tuple[int, ...]
    channels_at: int

    @property
    def channels(self) -> int:
        """C"""
        return self.shape[self.channels_at]

    @property
    def side(self) -> tuple[int, int] | None:
        """(H, W) of maps; None of tokens and vectors."""
        rest = self._rest()
        return (rest[0], rest[1]) if len(rest) == 2 else None

    def adapter(self) -> nn.Module | None:
        """Makes (B,C,H,W) or (B,C) of them; None where they are that already.

        Raises:
            ConfigError: more dimensions than a map has.
        """
        if len(self.shape) > 3:
            allowed = "cuts that leave (C,H,W), (H,W,C), (T,C) or (C) a row"
            raise ConfigError("pipeline.split", f"features {self.shape}", allowed)
        if len(self.shape) == 2:
            return TokenMean(1 + 1 - self.channels_at)
        if len(self.shape) == 3 and self.channels_at != 0:
            return ChannelsFirst(1 + self.channels_at)
        return None

    def _rest(self) -> tuple[int, ...]:
        return self.shape[: self.channels_at] + self.shape[self.channels_at + 1 :]


class ChannelsFirst(nn.Module):
    """(B,H,W,C) -> (B,C,H,W), a view."""

    def __init__(self, channels_at: int) -> None:
        super().__init__()
        self.channels_at = channels_at

    def forward(self, features: Tensor) -> Tensor:
        return features.movedim(self.channels_at, 1)


class TokenMean(nn.Module):
    """(B,T,C) -> (B,C), the mean over the tokens."""

    def __init__(self, tokens_at: int) -> None:
        super().__init__()
        self.tokens_at = tokens_at

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=self.tokens_at)


def channels_at(operations: Operations, at: int, row: Sequence[int]) -> int:
    """Which dimension of a row holds the channels, for a cut in front of operation `at`.

    Args:
        row: shape of one row of the tensor that crosses the cut.
    """
    (crossing,) = operations.alive(at)
    dims = len(row) + 1
    places: dict[fx.Node, list[int]] = {crossing: list(range(dims))}
    for node in operations.nodes[at:]:
        source = next((one for one in node.all_input_nodes if one in places), None)
        if source is None:
            continue
        if operations.weights(node):
            return places[source][_consumed(operations, node, dims)] - 1
        moved = _moved(operations, node, places[source])
        if moved is not None:
            places[node] = moved
    return 0 if len(row) == 3 else len(row) - 1


def _consumed(operations: Operations, node: fx.Node, dims: int) -> int:
    """Which of the `dims` dimensions of its input the weights of `node` are for.

    A block that is one operation consumes what the first module in it with weights of its own
    does; weights that are added or multiplied, what they are not broadcast along.
    """
    module = operations.module(node)
    if module is not None:
        owner = next((part for part in module.modules() if _owns(part)), module)
        return 1 if isinstance(owner, _FIRST) else dims - 1
    if name_of(node) in _FIRST_FUNCTIONS:
        return 1
    if name_of(node) in _ARITHMETIC:
        shape = operations.shape(operations.weights(node)[0])
        wide = [at for at, size in enumerate(shape) if size > 1]
        if len(wide) == 1 and len(shape) < dims + 1:
            return dims - len(shape) + wide[0]
    return dims - 1


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _moved(operations: Operations, node: fx.Node, dims: list[int]) -> list[int] | None:
    """Where each dimension of the output of `node` was before; None if that is not known."""
    module, name = operations.module(node), name_of(node)
    if module is not None:
        return dims if isinstance(module, _SAME_MODULES) else _permuted(module, dims)
    if name == "permute":
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return [dims[at] for at in order]  # type: ignore[index]
    if name == "transpose":
        one, other = int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
        result = list(dims)
        result[one], result[other] = dims[other], dims[one]
        return result
    return dims if name in _SAME else None


def _permuted(module: nn.Module, dims: list[int]) -> list[int] | None:
    """Of a module that permutes, such as torchvision's `Permute(dims)`."""
    order = getattr(module, "dims", None)
    known = isinstance(order, tuple | list) and sorted(order) == list(range(len(dims)))
    return [dims[at] for at in order] if known and order is not None else None
