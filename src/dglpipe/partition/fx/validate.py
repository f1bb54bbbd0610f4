"""What can be seen of a network that cannot be cut before it is traced."""

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
    """Refuses what would be lost, or fail later with another message.

    Raises:
        ConfigError: hooks on the network itself, which no stage would run; a member with a name
            that a stage needs for itself.
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
        hint = "The stages are such modules: rename it"
        raise ConfigError("model", got, allowed, hint)


def has_backward_hooks(module: nn.Module) -> bool:
    """Such hooks are run where the module is called, not where its operations are."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def _members(network: nn.Module) -> Iterable[str]:
    return (*network._modules, *network._parameters, *network._buffers)


@functools.cache
def _reserved() -> frozenset[str]:
    """What a graph module has that an ordinary one does not."""
    own = dir(fx.GraphModule(nn.Module(), fx.Graph()))
    return frozenset(own) - frozenset(dir(nn.Module()))
