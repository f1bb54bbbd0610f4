"""Modes of torch, such as `no_grad` and autocast, which `torch.fx` does not record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def modes() -> tuple[bool, bool, int]:
    """(gradients enabled, inference mode enabled, depth of nested autocast contexts)

    An autocast context without effect is counted as well."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Enables gradients, so that a `torch.no_grad` inside the context changes the mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class ModesError(Exception):
    """An operation runs in another mode than its network."""

    ALLOWED = "a network whose operations all run in the mode in which it is called"
    HINT = (
        "torch.no_grad, torch.inference_mode, torch.autocast and the forward of a "
        "torch.autograd.Function change the mode, which torch.fx does not record. Put these "
        "operations into a module with less than half of the weights, hide them in a function "
        "under torch.fx.wrap, or give the boundaries by hand: a builder (model=custom) of an "
        "nn.Sequential, whose parts may be any modules"
    )
