"""Search for values that are NaN or infinite in the tensors of a stage."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dglpipe.monitoring.loss_history import LossHistory

SMALLEST_SCALE = 2.0**-24
"""A smaller loss scale means that the gradients overflow at every scale."""


class StageWatch:
    """The losses of a stage by step, and the search for values that are NaN or infinite.

    Attributes:
        history: the training losses.
        inputs: the inputs of the last step, while they are in memory.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.history = LossHistory()
        self.inputs: weakref.ref[Tensor] | None = None
        self._module = module
        self._optimizer = optimizer
        self._masks: Sequence[str] = ()

    def begin(self) -> None:
        """Notes the buffers that are infinite from the start, such as the mask of an attention:
        they are not searched."""
        self._masks = nonfinite(self._module.named_buffers())

    def first_nonfinite(self, scaler: torch.amp.GradScaler | None = None) -> str | None:
        """The name of a weight, a buffer or a tensor of the optimizer that is NaN or infinite;
        None: all are finite. Waits for the device.

        Args:
            scaler: the loss scaler of the stage, if any.
        """
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            return "every gradient"
        weights = list(self._module.named_parameters())
        buffers = self._module.named_buffers()
        found = nonfinite(
            itertools.chain(
                weights,
                (one for one in buffers if one[0] not in self._masks),
                optimizer_tensors(weights, self._optimizer.state),
            )
        )
        return found[0].replace("segments.", "", 1) if found else None

    def has_finite_inputs(self) -> bool:
        """Whether the inputs of the last step are finite, or no longer in memory. Waits for the
        device."""
        inputs = None if self.inputs is None else self.inputs()
        return inputs is None or not nonfinite([("inputs", inputs)])


def nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors with a value that is NaN or infinite, in order.

    If there are none, reads every tensor once and waits for the device once.
    """
    named = [(name, one.detach()) for name, one in tensors if one.is_floating_point()]
    if not named:
        return []
    norm = nn.utils.get_total_norm([one for _, one in named], foreach=True)
    if bool(torch.isfinite(norm)):
        return []
    # The norm of large finite values is infinite, too.
    return [name for name, one in named if not bool(torch.isfinite(one).all())]


def optimizer_tensors(
    parameters: Iterable[tuple[str, nn.Parameter]], state: Mapping[Any, Mapping[str, Any]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the state of an optimizer, each with a name.

    Args:
        state: `Optimizer.state`.
    """
    for name, parameter in parameters:
        for key, value in state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{key} of {name}", value
