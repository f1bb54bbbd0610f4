"""Local losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from dglpipe.config import PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, N), labels (B,) int64 -> scalar."""
KIND = Kind("function or module of (logits, labels)", nn.Module, own=Callable)  # type: ignore[arg-type]


def build_loss(
    loss: str | PluginConfig, label_smoothing: float, key: str = "label_smoothing"
) -> Loss:
    """The local loss of a stage.

    Args:
        loss: `cross_entropy`, or a plug-in whose target returns a function or module that maps
            logits (B, N) and labels (B,) to a scalar.
        label_smoothing: fraction of the target that is spread over all classes.
        key: configuration key of `label_smoothing`, for errors.

    Raises:
        ConfigError: the name is unknown; a plug-in does not return a callable, or is combined
            with label smoothing.
    """
    if isinstance(loss, PluginConfig):
        return _plug_in(loss, label_smoothing, key)
    if loss != "cross_entropy":
        raise ConfigError("method.loss", loss, "cross_entropy, or a plug-in with a target")
    return nn.CrossEntropyLoss(label_smoothing=label_smoothing)


def _plug_in(config: PluginConfig, label_smoothing: float, key: str) -> Loss:
    if label_smoothing:
        hint = "Pass the label smoothing to your loss in method.loss.args"
        allowed = "0 with a loss from outside the package"
        raise ConfigError(key, label_smoothing, allowed, hint)
    return cast(Loss, build_plug_in(config, "method.loss", KIND))


def check_logits(logits: Tensor, rows: int, classes: int | None, stage: int) -> None:
    """Raises ConfigError unless `logits` is a floating-point tensor of shape (`rows`, `classes`).

    Args:
        classes: N; None: any number.
        stage: j, for the error.
    """
    if isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() == 2:
        found, count = logits.shape
        if found == rows and count == (classes or count):
            return
    allowed = f"floating-point logits of shape ({rows}, {classes or 'N'})"
    hint = "A stage ends in its head, the last stage in the network's own classifier"
    raise ConfigError("head", f"{describe(logits)} in stage {stage}", allowed, hint)


def check_loss(
    loss: Tensor, stage: int | None, key: str = "method.loss", learns: bool = True
) -> Tensor:
    """Returns `loss` if it is a floating-point scalar.

    Args:
        stage: j, for the error; None: before the run.
        key: configuration key that the error names.
        learns: whether the loss needs a gradient.

    Raises:
        ConfigError: the loss has another type or shape, or no gradient.
    """
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point():
        if loss.requires_grad or not learns:
            return loss
        got = f"{describe(loss)} without a gradient"
    else:
        got = describe(loss)
    allowed = "a floating-point tensor of shape ()" + ", with a gradient" * learns
    hint = "A loss is the mean over the rows, computed from the logits without detach() or item()"
    where = "" if stage is None else f" in stage {stage}"
    raise ConfigError(key, f"{got}{where}", allowed, hint)


def check_plug_in(loss: Loss, target: str, rows: int, classes: int) -> None:
    """Calls the loss of a plug-in on random logits (`rows`, `classes`), in training.

    Raises:
        ConfigError: the loss fails, or does not return a floating-point scalar with a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).requires_grad_()
    labels = torch.arange(rows) % classes
    place = f"logits ({rows}, {classes}) and labels ({rows},)"
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            found = loss(logits, labels)
    except Exception as error:  # code of the user may raise any exception
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError("method.loss", target, f"a loss of {place}", reason) from error
    check_loss(found, None)


def describe(value: object) -> str:
    """Type, shape and dtype of what a plug-in returned."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"an object of type {type(value).__name__}"
