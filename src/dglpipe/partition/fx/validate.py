"""Checks of a network before it is traced."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from torch import fx, nn

from dglpipe.errors import ConfigError

_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}


def validate_network(network: nn.Module) -> None:
    """Checks that cutting a network does not change its behaviour.

    Raises:
        ConfigError: the network itself has hooks, which no stage would run, or a member with the
            name of an attribute that every stage has.
    """
    name = type(network).__name__
    for attribute, what in _HOOKS.items():
        for hook in getattr(network, attribute).values():
            got = f"{name} with a {what}, {getattr(hook, '__qualname__', type(hook).__name__)}"
            hint = "Register it on a module inside, or give nn.Sequential(network)"
            raise ConfigError("model", got, "hooks on modules inside the network only", hint)
    taken = [member for member in _members(network) if member in _reserved()]
    if taken:
        got = f"{name} with a member named {taken[0]!r}"
        allowed = "names that a torch.fx.GraphModule does not have itself"
        hint = "Every stage is a torch.fx.GraphModule: rename the member"
        raise ConfigError("model", got, allowed, hint)


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether `module` has backward hooks, which run only if the module is called as a whole."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _members(network: nn.Module) -> Iterable[str]:
    return (*network._modules, *network._parameters, *network._buffers)


@functools.cache
def _reserved() -> frozenset[str]:
    """Attributes of a GraphModule that an nn.Module does not have."""
    own = dir(fx.GraphModule(nn.Module(), fx.Graph()))
    return frozenset(own) - frozenset(dir(nn.Module()))
