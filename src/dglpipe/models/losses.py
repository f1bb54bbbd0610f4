"""Local losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from dglpipe.config import PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, N), labels (B,) int64 -> scalar."""
KIND = Kind("function or module of (logits, labels)", nn.Module, own=Callable)  # type: ignore[arg-type]


def build_loss(loss: str | PluginConfig, label_smoothing: float) -> Loss:
    """The local loss of a stage.

    Args:
        loss: `cross_entropy`, or a plug-in whose target returns a function or module that maps
            logits (B, N) and labels (B,) to a scalar.
        label_smoothing: fraction of the target that is spread over all classes.

    Raises:
        ConfigError: the name is unknown; a plug-in does not return a callable, or is combined
            with label smoothing.
    """
    if isinstance(loss, PluginConfig):
        return _plug_in(loss, label_smoothing)
    if loss != "cross_entropy":
        raise ConfigError("method.loss", loss, "cross_entropy, or a plug-in with a target")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def _plug_in(config: PluginConfig, label_smoothing: float) -> Loss:
    if label_smoothing:
        hint = "Pass the label smoothing to your loss in method.loss.args"
        allowed = "0 with a loss from outside the package"
        raise ConfigError("label_smoothing", label_smoothing, allowed, hint)
    return cast(Loss, build_plug_in(config, "method.loss", KIND))
