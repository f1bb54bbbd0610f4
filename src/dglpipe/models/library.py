"""Any network of torchvision or timm, by the name that the library gives it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from dglpipe.config import TimmConfig, TorchvisionConfig
from dglpipe.errors import ConfigError

NETWORKS = {
    "torchvision": "any of torchvision's classification networks: model.name, model.args",
    "timm": "any of timm's networks (extra `timm`): model.name, model.args",
}


def build_torchvision(config: TorchvisionConfig, classes: int) -> nn.Module:
    """Images (B, 3, H, W) -> logits (B, N).

    Raises:
        ConfigError: there is no such network, or its builder refuses the arguments.
    """
    import torchvision.models as library  # seconds that other networks save

    names = library.list_models(module=library)
    if config.name not in names:
        raise _unknown(config.name, "one of torchvision's classification networks", names)
    builder = library.get_model_builder(config.name)
    return _call(builder, config.args or {}, weights=None, num_classes=classes)


def build_timm(config: TimmConfig, channels: int, classes: int) -> nn.Module:
    """Images (B, C, H, W) -> logits (B, N).

    Raises:
        ConfigError: timm is not installed, there is no such network, or its builder refuses
            the arguments.
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
    own = {"num_classes": classes, "in_chans": channels}
    return _call(
        timm.create_model, config.args or {}, model_name=config.name, pretrained=False, **own
    )


def _call(builder: Any, given: dict[str, Any], **own: Any) -> nn.Module:
    both = sorted(given.keys() & own.keys())
    if both:
        allowed = "arguments that the trainer does not set itself"
        raise ConfigError(f"model.args.{both[0]}", given[both[0]], allowed)
    try:
        network: nn.Module = builder(**own, **given)
    except Exception as error:  # ViT asserts, others raise what they like
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError("model.args", given, "arguments of the builder", reason) from error
    return network


def _unknown(name: str, allowed: str, names: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name, names, n=3)
    return ConfigError("model.name", name, allowed, f"Near it: {', '.join(near)}" * bool(near))
