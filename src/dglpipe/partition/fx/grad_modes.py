"""What `torch.fx` does not record: the modes of torch under which an operation runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def modes() -> tuple[bool, bool, int]:
    """Whether gradients are made, whether for inference alone, and in how many autocasts this is:
    each counts, one that changes nothing too."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), depth


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Gradients are made, whatever the caller has said: a `torch.no_grad` in here shows."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class ModesError(Exception):
    """An operation runs under another mode than the network that it is part of."""

    ALLOWED = "a network whose operations all run in the mode in which it is called"
    HINT = (
        "torch.no_grad, torch.inference_mode, torch.autocast and the forward of a "
        "torch.autograd.Function change it, and torch.fx does not see that. Put what is done so "
        "into a module of its own with less than half of the weights, hide it in a function under "
        "torch.fx.wrap, or give the boundaries by hand: a builder (model=custom) of an "
        "nn.Sequential, whose parts may be anything"
    )
