"""Networks of torchvision and timm, by their names in these libraries."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from dglpipe.config import ResnetConfig, TimmConfig, TorchvisionConfig, VggConfig
from dglpipe.errors import ConfigError

NETWORKS = {
    **{
        f"vgg{layers}_bn": f"torchvision's VGG-{layers} with batch norm, {layers - 3} convolutions"
        for layers in (11, 13, 16, 19)
    },
    **{
        f"resnet{layers}": f"torchvision's ResNet-{layers}, {blocks} {kind} blocks"
        for layers, blocks, kind in (
            (18, 8, "basic"),
            (34, 16, "basic"),
            (50, 16, "bottleneck"),
            (101, 33, "bottleneck"),
            (152, 50, "bottleneck"),
        )
    },
}
"""Name -> description, for the networks that have their own configuration group."""
ANY_NETWORK = {
    "torchvision": "any of torchvision's classification networks: model.name, model.args",
    "timm": "any of timm's networks (extra `timm`): model.name, model.args",
}


def build_vgg(config: VggConfig, classes: int) -> nn.Module:
    """VGG with batch norm (Simonyan and Zisserman, arXiv 1409.1556): images (B, 3, H, W) of at
    least 32x32 pixels -> logits (B, N)."""
    from torchvision.models import get_model_builder  # imported here: takes seconds

    builder = get_model_builder(config.name)
    network: nn.Module = builder(weights=None, num_classes=classes, dropout=config.dropout)
    return network


def build_resnet(config: ResnetConfig, classes: int) -> nn.Module:
    """ResNet with the ImageNet stem (He et al., arXiv 1512.03385): images (B, 3, H, W) ->
    logits (B, N)."""
    from torchvision.models import get_model_builder  # imported here: takes seconds

    network: nn.Module = get_model_builder(config.name)(weights=None, num_classes=classes)
    return network


def build_torchvision(config: TorchvisionConfig, classes: int) -> nn.Module:
    """Images (B, 3, H, W) -> logits (B, N).

    Raises:
        ConfigError: the network is unknown, or its builder rejects the arguments.
    """
    import torchvision.models as library  # imported here: takes seconds

    names = library.list_models(module=library)
    if config.name not in names:
        raise _unknown(config.name, "one of torchvision's classification networks", names)
    builder = library.get_model_builder(config.name)
    return _call(builder, config.args or {}, weights=None, num_classes=classes)


def build_timm(config: TimmConfig, channels: int, classes: int) -> nn.Module:
    """Images (B, C, H, W) -> logits (B, N).

    Raises:
        ConfigError: timm is not installed, the network is unknown, or its builder rejects the
            arguments.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        hint = "Install the extra: pip install 'dglpipe[timm]'"
        raise ConfigError(
            "model", "timm", "networks of libraries that are installed", hint
        ) from error
    if not timm.is_model(config.name):
        raise _unknown(config.name, "one of timm's networks", timm.list_models())
    # timm would unpickle the file `checkpoint_path`: `model.weights` reads tensors only.
    own = {"num_classes": classes, "in_chans": channels, "checkpoint_path": ""}
    return _call(
        timm.create_model, config.args or {}, model_name=config.name, pretrained=False, **own
    )


def _call(builder: Any, given: dict[str, Any], **own: Any) -> nn.Module:
    both = sorted(given.keys() & own.keys())
    if both:
        allowed = "arguments that dglpipe does not set itself"
        raise ConfigError(f"model.args.{both[0]}", given[both[0]], allowed)
    try:
        network: nn.Module = builder(**own, **given)
    except Exception as error:  # builders may raise any exception, e.g. AssertionError in ViT
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError("model.args", given, "arguments of the builder", reason) from error
    return network


def _unknown(name: str, allowed: str, names: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name, names, n=3)
    return ConfigError("model.name", name, allowed, f"Similar: {', '.join(near)}" * bool(near))
