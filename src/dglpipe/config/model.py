"""Networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dglpipe.config.checks import require, require_name, require_number
from dglpipe.config.plugin import PluginConfig


@dataclass(kw_only=True, slots=True)
class CnnConfig:
    """The plain convolution networks of the paper."""

    family: str = "cnn"
    name: str = "cnn6"
    width: int = 32
    """Channels of the first layer; the others are 2 or 4 times as wide."""
    widths: list[int] | None = None
    """Channels of every layer, in place of `width`."""
    pools: list[int] | None = None
    """Layers, counted from 0, in front of which a 2x2 max-pool stands; null: 1 and 3."""
    dropout: float = 0.0
    """Probability that a channel is dropped behind each layer."""
    weights: str | None = None
    """Initial weights: a file, or a member of torchvision's enums, `ResNet18_Weights.DEFAULT`,
    that is on disk already; null: drawn from the seed."""

    def __post_init__(self) -> None:
        require_name("model.name", self.name, ("cnn4", "cnn6"))
        require_number("model.width", self.width, 1)
        layers = int(self.name[3:])
        if self.widths is not None:
            fits = len(self.widths) == layers and min(self.widths) >= 1
            require(fits, "model.widths", self.widths, f"{layers} numbers from 1")
        if self.pools is not None:
            ordered = sorted(set(self.pools)) == self.pools
            inside = all(0 < pool < layers for pool in self.pools)
            require(
                ordered and inside, "model.pools", self.pools, f"rising numbers 1..{layers - 1}"
            )
        require_number("model.dropout", self.dropout, 0, 0.99)


@dataclass(kw_only=True, slots=True)
class VggConfig:
    """torchvision's VGG networks with batch norm."""

    family: str = "vgg"
    name: str = "vgg11_bn"
    dropout: float = 0.5
    """Probability in the classifier; 0 is the paper's."""
    weights: str | None = None

    def __post_init__(self) -> None:
        names = ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
        require_name("model.name", self.name, names)
        require_number("model.dropout", self.dropout, 0, 0.99)


@dataclass(kw_only=True, slots=True)
class ResnetConfig:
    """torchvision's ResNets (ImageNet stem)."""

    family: str = "resnet"
    name: str = "resnet18"
    weights: str | None = None

    def __post_init__(self) -> None:
        names = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        require_name("model.name", self.name, names)


@dataclass(kw_only=True, slots=True)
class ResnetCifarConfig:
    """ResNets for 32x32 images with option-A shortcuts."""

    family: str = "resnet_cifar"
    name: str = "resnet20_cifar"
    weights: str | None = None

    def __post_init__(self) -> None:
        names = ("resnet20_cifar", "resnet56_cifar", "resnet110_cifar")
        require_name("model.name", self.name, names)


TRANSFORMING = ("googlenet", "inception_v3")
"""Networks whose published weights want other images, which their builders then make."""


@dataclass(kw_only=True, slots=True)
class TorchvisionConfig:
    """Any classification network of torchvision, by its builder's name."""

    family: str = "torchvision"
    name: str = ""
    """As `torchvision.models.list_models(module=torchvision.models)` has it."""
    args: dict[str, Any] | None = None
    """Further keyword arguments of the builder."""
    weights: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.name), "model.name", self.name, "the name of a network of torchvision")
        # Kept here, so that the trained network is built with it too, long after its weights.
        published = self.weights is not None and "_Weights." in self.weights
        own = {"transform_input": True} if published and self.name in TRANSFORMING else {}
        self.args = {**own, **(self.args or {})}


@dataclass(kw_only=True, slots=True)
class TimmConfig:
    """Any network of timm (extra `timm` of the package)."""

    family: str = "timm"
    name: str = ""
    """As `timm.list_models()` has it."""
    args: dict[str, Any] | None = None
    """Further keyword arguments of `timm.create_model`."""
    weights: str | None = None

    def __post_init__(self) -> None:
        self.args = self.args or {}
        require(bool(self.name), "model.name", self.name, "the name of a network of timm")


@dataclass(kw_only=True, slots=True)
class CustomModelConfig(PluginConfig):
    """A network from outside the package."""

    weights: str | None = None


ModelConfig = (
    CnnConfig
    | VggConfig
    | ResnetConfig
    | ResnetCifarConfig
    | TorchvisionConfig
    | TimmConfig
    | CustomModelConfig
)
MODEL_FAMILIES: dict[str, type[Any]] = {
    "cnn": CnnConfig,
    "vgg": VggConfig,
    "resnet": ResnetConfig,
    "resnet_cifar": ResnetCifarConfig,
    "torchvision": TorchvisionConfig,
    "timm": TimmConfig,
}
