"""Builds the method of a run from its settings."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from dglpipe.config import Config, CustomMethodConfig, MethodConfig, PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.data import DataInfo
from dglpipe.methods.base import Method
from dglpipe.methods.local.base import LocalObjective
from dglpipe.methods.local.registry import build_local

BUILDERS = {
    "dgl": "dglpipe.methods.dgl:Dgl",
    "dgl_async": "dglpipe.methods.dgl_async.method:DglAsync",
    "sequential": "dglpipe.methods.sequential:Sequential",
    "backprop": "dglpipe.methods.backprop:Backprop",
    "dni": "dglpipe.methods.dni:Dni",
    "ddg": "dglpipe.methods.ddg:Ddg",
    "features_replay": "dglpipe.methods.features_replay:FeaturesReplay",
}
"""Module and class of each method. A method is imported when a run uses it."""
KIND = Kind("dglpipe.methods.Method", Method)


def build_method(settings: MethodConfig, local: Sequence[LocalObjective] = ()) -> Method:
    """The method that `settings` name.

    The target of a custom method is called with `method.args` and, if its signature names the
    parameter, with `settings`.

    Args:
        local: the local objective of every stage; (): for `Method.placement` only.

    Raises:
        ConfigError: a custom target cannot be loaded, or does not return a `Method`.
    """
    method = _build(settings)
    method.local = tuple(local)
    return method


def build_run_method(config: Config, stages: int, data: DataInfo) -> Method:
    """The method of a run with its local objectives.

    Args:
        stages: K.
        data: properties of the data set.

    Raises:
        ConfigError: as `build_method`.
    """
    return build_method(config.method, build_local(config, stages, data))


def _build(settings: MethodConfig) -> Method:
    if isinstance(settings, CustomMethodConfig):
        plugin = PluginConfig(target=settings.target, args=settings.args or {})
        built: Method = build_plug_in(plugin, "method", KIND, settings=settings)
        return built
    module, _, name = BUILDERS[settings.name].partition(":")
    method = getattr(importlib.import_module(module), name)(settings)
    assert isinstance(method, Method)
    return method
