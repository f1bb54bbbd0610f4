"""Builds the method of a run from its settings."""

from __future__ import annotations

import importlib

from dglpipe.config import CustomMethodConfig, MethodConfig, PluginConfig
from dglpipe.config.builder_kind import Kind
from dglpipe.config.instantiate import build_plug_in
from dglpipe.methods.base import Method

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


def build_method(settings: MethodConfig) -> Method:
    """The method that `settings` name.

    The target of a custom method is called with `method.args` and, if its signature names the
    parameter, with `settings`.

    Raises:
        ConfigError: a custom target cannot be loaded, or does not return a `Method`.
    """
    if isinstance(settings, CustomMethodConfig):
        plugin = PluginConfig(target=settings.target, args=settings.args or {})
        built: Method = build_plug_in(plugin, "method", KIND, settings=settings)
        return built
    module, _, name = BUILDERS[settings.name].partition(":")
    method = getattr(importlib.import_module(module), name)(settings)
    assert isinstance(method, Method)
    return method
