"""Auxiliary heads: features of a stage -> logits, with the layers of the authors' code.

A head reads what crosses the link: the stage's output, behind the pool that belongs to it.
The authors' heads read the map in front of the pool that follows, 4 times larger; other
places for the pools (`model.pools`) reproduce theirs.

Nothing in a head may alter its input in place: that tensor is on its way to the next stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dglpipe.config import HeadConfig, PluginConfig
from dglpipe.config.instantiate import build_plug_in
from dglpipe.errors import ConfigError
from dglpipe.models.blocks import average_pool, mlp
from dglpipe.models.features import Features
from dglpipe.models.meta import ShapesOnly

Side = tuple[int, int]
"""Height and width of a map."""

_SMALL = (2, 2)
"""All built-in heads end on maps of this side; smaller ones stay as they are."""


def head_on(config: HeadConfig | PluginConfig, features: Features, classes: int) -> nn.Module:
    """The head of a stage that hands on `features`: a batch of them -> logits (B, N).

    Raises:
        ConfigError: as `build_head`; features of more dimensions than a map has.
    """
    adapter = features.adapter()
    head = build_head(config, features.channels, features.side, classes)
    return head if adapter is None else nn.Sequential(adapter, head)


def check_head(head: nn.Module, shape: Sequence[int], classes: int) -> None:
    """Sends two rows of `shape` through `head`, which is on meta.

    Raises:
        ConfigError: it does not give logits (B, N) of them.
    """
    place = f"features {tuple(shape)} a row"
    try:
        with torch.no_grad(), ShapesOnly():
            logits = head(torch.zeros(2, *shape, device="meta"))
    except Exception as error:  # whatever a user's head does
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        kind = type(head).__name__
        raise ConfigError("head", kind, f"one that works on {place}", reason) from error
    came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if came != (2, classes):
        raise ConfigError("head", came, f"logits {(2, classes)} for 2 rows of {place}")


def build_head(
    config: HeadConfig | PluginConfig, channels: int, side: Side | None, classes: int
) -> nn.Module:
    """The head of a stage with output (B, channels, *side), or (B, channels) if `side` is None.

    A plug-in's target is called with its arguments and, where its signature names them and
    the user did not, with `channels`, `side` and `classes`.

    Args:
        channels: C.
        side: height and width of the stage's output in pixels; None: it is no map.
        classes: N.

    Returns:
        Features -> logits (B, N).

    Raises:
        ConfigError: a head of convolutions for features without height and width; a plug-in
            that cannot be loaded, or that gives something else than an `nn.Module`.
    """
    if isinstance(config, PluginConfig):
        return _custom(config, channels=channels, side=side, classes=classes)
    if side is None:
        return _on_vectors(config.name, channels, classes)
    return _ON_MAPS[config.name](channels, side, classes)


def _mlp_sr(channels: int, side: Side, classes: int) -> nn.Module:
    """3 x 1x1 convolution on a quarter of the side, then a 3-hidden-layer MLP."""
    quarter = _quarter(side)
    convolutions = _convolutions(channels, kernel=1, count=3)
    pool = average_pool(side, quarter)
    return nn.Sequential(pool, *convolutions, *_mlp_end(channels, quarter, classes))


def _mlp(channels: int, side: Side, classes: int) -> nn.Module:
    """The pools of `mlp_sr` without its convolutions."""
    quarter = _quarter(side)
    return nn.Sequential(average_pool(side, quarter), *_mlp_end(channels, quarter, classes))


def _cnn(channels: int, side: Side, classes: int) -> nn.Module:
    """2 x 3x3 convolution at full size."""
    convolutions = _convolutions(channels, kernel=3, count=2)
    features = channels * math.prod(_small(side))
    return nn.Sequential(
        *convolutions,
        average_pool(side, _SMALL),
        nn.BatchNorm2d(channels),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def _linear(channels: int, side: Side, classes: int) -> nn.Module:
    features = channels * math.prod(_small(side))
    return nn.Sequential(average_pool(side, _SMALL), nn.Flatten(), nn.Linear(features, classes))


_ON_MAPS: dict[str, Callable[[int, Side, int], nn.Module]] = {
    "mlp_sr": _mlp_sr,
    "mlp": _mlp,
    "cnn": _cnn,
    "linear": _linear,
}


def _on_vectors(name: str, channels: int, classes: int) -> nn.Module:
    """On (B, C): what is left of a head when there is nothing to pool."""
    if name == "cnn":
        hint = "Take mlp or linear, or cut the network earlier"
        raise ConfigError("head.name", name, "a head for features of shape (B, C)", hint)
    if name == "linear":
        return nn.Linear(channels, classes)
    return mlp(channels, channels, 3, classes)


def _quarter(side: Side) -> Side:
    return math.ceil(side[0] / 4), math.ceil(side[1] / 4)


def _small(side: Side) -> Side:
    return min(_SMALL[0], side[0]), min(_SMALL[1], side[1])


def _convolutions(channels: int, kernel: int, count: int) -> list[nn.Module]:
    """`count` x (convolution C -> C without bias, BN, ReLU); height and width stay."""
    parts: list[nn.Module] = []
    for _ in range(count):
        parts += [
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return parts


def _mlp_end(channels: int, side: Side, classes: int) -> list[nn.Module]:
    features = channels * math.prod(_small(side))
    pool = average_pool(side, _SMALL)
    return [pool, nn.Flatten(), *mlp(features, 4 * channels, 3, classes)]


def _custom(config: PluginConfig, **offered: object) -> nn.Module:
    head = build_plug_in(config, "head", **offered)
    if not isinstance(head, nn.Module):
        kind = type(head).__name__
        raise ConfigError(
            "head.target", config.target, "a builder of a torch.nn.Module", f"It gave a {kind}"
        )
    return head
