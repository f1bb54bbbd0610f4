"""Auxiliary heads: features of a stage -> logits.

`mlp_sr`, `mlp`, `cnn` and `linear` have the layers of the authors' code. Where a stage ends in
pooling, a head reads the map in front of the pool, as theirs does, while the pooled map crosses the
link; with `head.reads=output` it reads the pooled map.

A head must not change its input in place, since the same tensor is sent to the next stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dglpipe.config import AnyHeadConfig, CnnSrConfig, PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.errors import ConfigError
from dglpipe.models.blocks import average_pool, mlp
from dglpipe.models.features import Features
from dglpipe.models.meta import inspection, sample_batch
from dglpipe.models.synthesiser import Synthesiser

HEAD = "head"
"""Name of the auxiliary module that maps features to logits (B, N)."""
EXITS = (HEAD, "model")
"""Names of the modules that return logits. `model` is the segments of the last stage."""

KIND = Kind("torch.nn.Module", nn.Module)

Side = tuple[int, int]
"""Height and width of a map."""

_SMALL = (2, 2)
"""Side in pixels to which all built-in heads reduce their maps; smaller maps are not resized."""


def head_on(
    config: AnyHeadConfig, features: Features, classes: int, width: int | None = None
) -> nn.Module:
    """The head of a stage with `features`: features (B, ...) -> logits (B, N).

    Args:
        width: see `build_head`.

    Raises:
        ConfigError: as `build_head`; a row of features has more than three dimensions.
    """
    adapter = features.adapter()
    head = build_head(config, features.channels, features.side, classes, width)
    return head if adapter is None else nn.Sequential(adapter, head)


def check_output(
    name: str,
    module: nn.Module,
    shape: Sequence[int],
    classes: int,
    device: torch.device,
    where: str = "",
    hint: str = "",
) -> None:
    """Runs two rows through a module, and checks that an exit returns logits (2, N).

    Args:
        name: name of an auxiliary module, or `model` for the segments of the last stage. `model`
            and `head` are exits.
        shape: shape of one input row.
        classes: N.
        device: device of the module.
        where: description of the stage, for the error.
        hint: how to make another module fit, for the error.

    Raises:
        ConfigError: the module fails on its input, or an exit does not return logits.
    """
    key = name if name in EXITS else "method"
    place = f"features {tuple(shape)} per row{where}"
    try:
        with torch.no_grad(), inspection(device):
            output = module(sample_batch((2, *shape), device))
    except Exception as error:  # code of the user may raise any exception
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        allowed = f"one that works on {place}"
        advice = ". ".join(filter(None, (reason, hint)))
        raise ConfigError(key, type(module).__name__, allowed, advice) from error
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    allowed = f"logits {(2, classes)} for 2 rows of {place}"
    if name in EXITS and got != (2, classes):
        raise ConfigError(key, got, allowed)
    if name in EXITS and not output.is_floating_point():
        raise ConfigError(key, f"{got} of type {output.dtype}", f"floating-point {allowed}")


def build_head(
    config: AnyHeadConfig,
    channels: int,
    side: Side | None,
    classes: int,
    width: int | None = None,
) -> nn.Module:
    """The head of features (B, channels, *side), or (B, channels) if `side` is None.

    The target of a plug-in is called with the user's arguments. Parameters of its signature
    named `channels`, `side` and `classes` get these values unless the user sets them.

    Args:
        channels: C.
        side: height and width of the features in pixels; None: vectors.
        classes: N.
        width: channels of the network's last map, for `cnn_sr`; None: C.

    Returns:
        Features -> logits (B, N).

    Raises:
        ConfigError: a head with convolutions for features without height and width; a plug-in
            that cannot be loaded or does not return an `nn.Module`.
    """
    if isinstance(config, PluginConfig):
        offered = {"channels": channels, "side": side, "classes": classes}
        plugged: nn.Module = build_plug_in(config, "head", KIND, **offered)
        return plugged
    if side is None:
        head = _on_vectors(config.name, channels, classes)
    elif isinstance(config, CnnSrConfig):
        head = _cnn_sr(config, channels, side, classes, config.width or width or channels)
    else:
        head = _ON_MAPS[config.name](channels, side, classes)
    if config.init == "kaiming":
        _init_kaiming(head)
    if config.dropout:
        *others, last = head if isinstance(head, nn.Sequential) else [head]
        head = nn.Sequential(*others, nn.Dropout(config.dropout), last)
    return head


def _init_kaiming(head: nn.Module) -> None:
    """The initial weights of torchvision's VGG. Norms keep the weights of torch, 1 and 0."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _mlp_sr(channels: int, side: Side, classes: int) -> nn.Module:
    """Pool to a quarter of the side, 3 x 1x1 convolution, an MLP of 3 hidden layers."""
    quarter = _quarter(side)
    convolutions = _convolutions(channels, kernel=1, count=3)
    pool = average_pool(side, quarter)
    return nn.Sequential(pool, *convolutions, *_mlp_end(channels, quarter, classes))


def _mlp(channels: int, side: Side, classes: int) -> nn.Module:
    """`mlp_sr` without its convolutions."""
    quarter = _quarter(side)
    return nn.Sequential(average_pool(side, quarter), *_mlp_end(channels, quarter, classes))


def _cnn(channels: int, side: Side, classes: int) -> nn.Module:
    """2 x 3x3 convolution at full size, pool, BN, a linear layer."""
    convolutions = _convolutions(channels, kernel=3, count=2)
    features = channels * math.prod(_small(side))
    return nn.Sequential(
        *convolutions,
        average_pool(side, _SMALL),
        nn.BatchNorm2d(channels),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def _cnn_sr(config: CnnSrConfig, channels: int, side: Side, classes: int, width: int) -> nn.Module:
    """Pool to a small map, `depth` x 3x3 convolution to `width` channels, pool, a linear layer."""
    reduced = min(config.side, side[0]), min(config.side, side[1])
    return nn.Sequential(
        average_pool(side, reduced),
        *_convolutions(channels, kernel=3, count=config.depth, width=width),
        average_pool(reduced, _SMALL),
        nn.Flatten(),
        nn.Linear(width * math.prod(_small(reduced)), classes),
    )


def _linear(channels: int, side: Side, classes: int) -> nn.Module:
    features = channels * math.prod(_small(side))
    return nn.Sequential(average_pool(side, _SMALL), nn.Flatten(), nn.Linear(features, classes))


def _dni(channels: int, side: Side | None, classes: int) -> nn.Module:
    """The layers of a synthesiser of DNI, global average pool, a linear layer."""
    shape = (channels, *(side or ()))
    layers: list[nn.Module] = [Synthesiser(Features(shape, 0), 2, None, kernel=5, classes=0)]
    if side is not None:
        layers += [average_pool(side, (1, 1)), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


_ON_MAPS: dict[str, Callable[[int, Side, int], nn.Module]] = {
    "mlp_sr": _mlp_sr,
    "mlp": _mlp,
    "cnn": _cnn,
    "linear": _linear,
    "dni": _dni,
}


def _on_vectors(name: str, channels: int, classes: int) -> nn.Module:
    """Head for vectors (B, C): the layers of a head that do not need a map."""
    if name in ("cnn", "cnn_sr"):
        hint = "Use mlp or linear, or cut the network earlier"
        raise ConfigError("head.name", name, "a head for features of shape (B, C)", hint)
    if name == "linear":
        return nn.Linear(channels, classes)
    if name == "dni":
        return _dni(channels, None, classes)
    return mlp(channels, channels, 3, classes)


def _quarter(side: Side) -> Side:
    return math.ceil(side[0] / 4), math.ceil(side[1] / 4)


def _small(side: Side) -> Side:
    return min(_SMALL[0], side[0]), min(_SMALL[1], side[1])


def _convolutions(
    channels: int, kernel: int, count: int, width: int | None = None
) -> list[nn.Module]:
    """`count` x (convolution to `width` channels, or C, without bias, BN, ReLU); keeps height and
    width of the maps."""
    parts: list[nn.Module] = []
    outputs = width or channels
    for at in range(count):
        inputs = outputs if at else channels
        parts += [
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return parts


def _mlp_end(channels: int, side: Side, classes: int) -> list[nn.Module]:
    features = channels * math.prod(_small(side))
    pool = average_pool(side, _SMALL)
    return [pool, nn.Flatten(), *mlp(features, 4 * channels, 3, classes)]
