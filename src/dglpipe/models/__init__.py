"""Networks by name, heads, losses and initial weights.

Imports only `config` and `errors`. Begin with `build_network`, in this file. `cnn`, `fastcnn`,
`resnet_cifar` and `library` (torchvision and timm) have the networks, `heads` builds the auxiliary
heads, `losses` the loss function. Builders draw weights from the global random state of torch,
which the caller seeds (`meta.building`). `meta` builds networks whose weights take no memory,
`partial` networks that store some of their weights.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from dglpipe.config import (
    CnnConfig,
    DniCnnConfig,
    FastCnnConfig,
    ModelConfig,
    ResnetCifarConfig,
    ResnetConfig,
    TimmConfig,
    TorchvisionConfig,
    VggConfig,
)
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.errors import ConfigError
from dglpipe.models import cnn, fastcnn, library, resnet_cifar
from dglpipe.models.pretrained import initialise

__all__ = ["Entry", "build_network", "catalogue", "wanted_channels"]


KIND = Kind("torch.nn.Module", nn.Module)


class Entry(NamedTuple):
    """A network that a configuration can name."""

    name: str
    description: str
    """One line."""


def catalogue() -> list[Entry]:
    """All networks, by family."""
    own = cnn.NETWORKS | fastcnn.NETWORKS
    networks = own | library.NETWORKS | resnet_cifar.NETWORKS | library.ANY_NETWORK
    known = [Entry(*item) for item in networks.items()]
    return [*known, Entry("custom", "your own: model.target=package.module:builder, model.args")]


_COLOUR = VggConfig | ResnetConfig | ResnetCifarConfig | TorchvisionConfig


def wanted_channels(config: ModelConfig) -> int | None:
    """Number of channels that the network requires; None: any number.

    The data layer repeats the channel of gray images.
    """
    return 3 if isinstance(config, _COLOUR) else None


def build_network(config: ModelConfig, channels: int, classes: int, image_size: int) -> nn.Module:
    """The network of `config`: images (B, channels, H, W) -> logits (B, classes).

    Weights are loaded from `config.weights`, or drawn.

    The target of a plug-in is called with the user's arguments. Parameters of its signature
    named `channels`, `classes` and `image_size` get these values unless the user sets them.

    Args:
        channels: channels of the images.
        classes: N.
        image_size: height and width of the images in pixels.

    Raises:
        ConfigError: the network requires another number of channels; a plug-in cannot be loaded or
            does not return an `nn.Module`; the weights do not fit.
    """
    network = _build(config, channels, classes, image_size)
    if config.weights is not None:
        initialise(network, config.weights)
    return network


def _build(config: ModelConfig, channels: int, classes: int, image_size: int) -> nn.Module:
    wanted = wanted_channels(config)
    if wanted not in (None, channels):
        hint = "The data layer repeats gray images; cnn4 and cnn6 take any channels"
        got = f"{config.name} for images of {channels} channels"
        raise ConfigError("model", got, f"images of {wanted} channels", hint)
    if isinstance(config, CnnConfig):
        return cnn.build(config, channels, classes, image_size)
    if isinstance(config, DniCnnConfig):
        return cnn.build_dni(config, channels, classes, image_size)
    if isinstance(config, FastCnnConfig):
        return fastcnn.build(config, channels, classes, image_size)
    if isinstance(config, VggConfig):
        return library.build_vgg(config, classes)
    if isinstance(config, ResnetConfig):
        return library.build_resnet(config, classes)
    if isinstance(config, ResnetCifarConfig):
        return resnet_cifar.build(config, classes)
    if isinstance(config, TorchvisionConfig):
        return library.build_torchvision(config, classes)
    if isinstance(config, TimmConfig):
        return library.build_timm(config, channels, classes)
    offered = {"channels": channels, "classes": classes, "image_size": image_size}
    network: nn.Module = build_plug_in(config, "model", KIND, **offered)
    return network
