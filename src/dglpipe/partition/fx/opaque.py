"""Selection of modules that become single operations, because they cannot be traced."""

from __future__ import annotations

from collections.abc import Set

from torch import nn

from dglpipe.errors import ConfigError


class UntraceableError(Exception):
    """A part of the network cannot be traced.

    Args:
        path: path of the innermost module that contains the part; empty for the network itself.
        user_error: the error to raise if no enclosing module can be a single operation.
    """

    def __init__(self, path: str, user_error: ConfigError) -> None:
        super().__init__(path)
        self.path = path
        self.user_error = user_error


def opaque_part(
    network: nn.Module, path: str, whole: Set[type[nn.Module] | str]
) -> type[nn.Module] | str | None:
    """Selects a module to trace as one operation.

    Args:
        path: path of the module that cannot be traced.
        whole: results of earlier calls.

    Returns:
        The class of the module at `path` or of the innermost enclosing module that is small
        enough; or the path of a child of an `nn.Sequential`; None: the network cannot be traced.
    """
    while path:
        kind = type(network.get_submodule(path))
        alike = [module for module in network.modules() if type(module) is kind]
        small = 2 * max(map(_size, alike)) <= _size(network)
        if small and not issubclass(kind, _CONTAINERS) and kind not in whole:
            return kind
        if isinstance(network, nn.Sequential) and "." not in path and path not in whole:
            return path
        path = path.rpartition(".")[0]
    return None


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
