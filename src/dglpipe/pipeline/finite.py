"""Search for values that are NaN or infinite in the tensors of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


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
