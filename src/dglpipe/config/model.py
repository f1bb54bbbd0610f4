"""Networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require, require_name, require_number, require_path
from dglpipe.config.plugin import PluginConfig

WIDEST = 65536
"""Upper limit of the channels of a layer."""


@dataclass(kw_only=True, slots=True)
class CnnConfig:
    """The plain convolutional networks of Belilovsky et al. (ICML 2020)."""

    family: str = "cnn"
    """Always `cnn`."""
    name: str = "cnn6"
    """`cnn4` or `cnn6`."""
    width: int = 32
    """Channels of layer 0; 1 to 16384. The other layers have 2 or 4 times as many channels. The
    paper has 128 in `cnn6` and 64 in `cnn4`."""
    widths: list[int] | None = None
    """Channels of every layer, each from 1 to 65536; replaces `width`; null: determined by
    `width`."""
    pools: list[int] | None = None
    """Layers, counted from 0, that are preceded by a 2x2 max pooling; increasing; null: [1, 3]."""
    dropout: float = 0.0
    """Probability that a channel is dropped after a layer; 0 to 0.99; 0: no dropout."""
    hidden_layers: int = 2
    """Hidden layers of the classifier, each of 4 times the channels of the last layer; 1 to 100."""
    weights: str | None = None
    """Initial weights: a file, or a member of a weights enum of torchvision such as
    `ResNet18_Weights.DEFAULT` whose file is in the cache of torch; null: initialised from
    `seed`."""

    def __post_init__(self) -> None:
        require_name("model.name", self.name, ("cnn4", "cnn6"))
        require_number("model.width", self.width, 1, WIDEST // 4)
        layers = int(self.name[3:])
        if self.widths is not None:
            fits = (
                len(self.widths) == layers and 1 <= min(self.widths) <= max(self.widths) <= WIDEST
            )
            allowed = f"{layers} whole numbers from 1 to {WIDEST}"
            require(fits, "model.widths", self.widths, allowed)
        if self.pools is not None:
            increasing = sorted(set(self.pools)) == self.pools
            fits = increasing and all(0 < pool < layers for pool in self.pools)
            allowed = f"increasing whole numbers from 1 to {layers - 1}"
            require(fits, "model.pools", self.pools, allowed)
        require_number("model.dropout", self.dropout, 0, 0.99)
        require_number("model.hidden_layers", self.hidden_layers, 1, 100)
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class DniCnnConfig:
    """The network of the paper's comparison with synthetic gradients; any number of channels."""

    family: str = "dni_cnn"
    """Always `dni_cnn`."""
    name: str = "dni_cnn"
    """Always `dni_cnn`."""
    width: int = 128
    """Channels of every layer; 1 to 65536."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        require_number("model.width", self.width, 1, WIDEST)
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class FastCnnConfig:
    """A network that learns CIFAR-10 in a few epochs, for images of 25 pixels or more."""

    family: str = "fastcnn"
    """Always `fastcnn`."""
    name: str = "fastcnn"
    """Always `fastcnn`."""
    width: int = 64
    """Channels of the first group of layers; 1 to 16384; the other groups have four times as
    many."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`, and the first layer from
    training images."""

    def __post_init__(self) -> None:
        require_number("model.width", self.width, 1, WIDEST // 4)
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class VggConfig:
    """VGG networks with batch norm of torchvision."""

    family: str = "vgg"
    """Always `vgg`."""
    name: str = "vgg11_bn"
    """`vgg11_bn`, `vgg13_bn`, `vgg16_bn` or `vgg19_bn`."""
    dropout: float = 0.5
    """Dropout probability in the classifier; 0 to 0.99; 0: no dropout, as in the paper."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        names = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
        require_name("model.name", self.name, names)
        require_number("model.dropout", self.dropout, 0, 0.99)
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class ResnetConfig:
    """ResNets of torchvision, with the stem for ImageNet."""

    family: str = "resnet"
    """Always `resnet`."""
    name: str = "resnet18"
    """`resnet18`, `resnet34`, `resnet50`, `resnet101` or `resnet152`."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        names = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        require_name("model.name", self.name, names)
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class ResnetCifarConfig:
    """ResNets for 32x32 images, with parameter-free shortcuts (option A of He et al., 2016)."""

    family: str = "resnet_cifar"
    """Always `resnet_cifar`."""
    name: str = "resnet20_cifar"
    """`resnet20_cifar`, `resnet56_cifar` or `resnet110_cifar`."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        names = ("resnet20_cifar", "resnet56_cifar", "resnet110_cifar")
        require_name("model.name", self.name, names)
        _check_weights(self.weights)


TRANSFORMING = ("googlenet", "inception_v3")
"""Networks of torchvision that must transform their input if they load published weights."""


@dataclass(kw_only=True, slots=True)
class TorchvisionConfig:
    """Any classification network of torchvision."""

    family: str = "torchvision"
    """Always `torchvision`."""
    name: str = ""
    """A name of `torchvision.models.list_models(module=torchvision.models)`; required."""
    args: dict[str, Any] | None = None
    """Further keyword arguments of the builder; null: none."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", self.name, "the name of a torchvision network")
        _check_weights(self.weights)
        # `args` holds transform_input, so that a trained network is rebuilt with it even where
        # its initial weights are no longer available.
        published = self.weights is not None and "_Weights." in self.weights
        own = {"transform_input": True} if published and self.name in TRANSFORMING else {}
        self.args = {**own, **(self.args or {})}


@dataclass(kw_only=True, slots=True)
class TimmConfig:
    """Any network of timm; requires the extra `timm` of the package."""

    family: str = "timm"
    """Always `timm`."""
    name: str = ""
    """A name of `timm.list_models()`; required."""
    args: dict[str, Any] | None = None
    """Further keyword arguments of `timm.create_model`; null: none."""
    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        self.args = self.args or {}
        require(bool(self.name), "model.name", self.name, "the name of a timm network")
        _check_weights(self.weights)


@dataclass(kw_only=True, slots=True)
class CustomModelConfig(PluginConfig):
    """A network from outside the package."""

    weights: str | None = None
    """Initial weights, as in `CnnConfig`; null: initialised from `seed`."""

    def __post_init__(self) -> None:
        _check_weights(self.weights)


def _check_weights(weights: str | None) -> None:
    if weights is not None:
        require_path("model.weights", weights)


ModelConfig = (
    CnnConfig
    | DniCnnConfig
    | FastCnnConfig
    | VggConfig
    | ResnetConfig
    | ResnetCifarConfig
    | TorchvisionConfig
    | TimmConfig
    | CustomModelConfig
)
MODEL_FAMILIES: dict[str, type[Any]] = {
    "cnn": CnnConfig,
    "dni_cnn": DniCnnConfig,
    "fastcnn": FastCnnConfig,
    "vgg": VggConfig,
    "resnet": ResnetConfig,
    "resnet_cifar": ResnetCifarConfig,
    "torchvision": TorchvisionConfig,
    "timm": TimmConfig,
}
"""Built-in networks: family -> schema."""
