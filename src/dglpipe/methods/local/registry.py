"""Builds the local objectives of a run from its settings."""

from __future__ import annotations

import importlib

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.methods.local.base import LocalObjective

BUILDERS = {
    "task": "dglpipe.methods.local.base:LocalObjective",
    "infopro": "dglpipe.methods.local.infopro:Infopro",
    "auglocal": "dglpipe.methods.local.auglocal:Auglocal",
    "predsim": "dglpipe.methods.local.predsim:Predsim",
    "trgl": "dglpipe.methods.local.trgl:Trgl",
    "man": "dglpipe.methods.local.man:Man",
}
"""Module and class of each objective. An objective is imported when a run uses it."""


def build_local(config: Config, stages: int, data: DataInfo) -> tuple[LocalObjective, ...]:
    """The local objective of every stage.

    Args:
        stages: K.
        data: properties of the data set.
    """
    found = []
    for j in range(stages):
        settings = config.stage(j).local
        module, _, name = BUILDERS[settings.name].partition(":")
        objective = getattr(importlib.import_module(module), name)(settings, j, stages, data)
        assert isinstance(objective, LocalObjective)
        found.append(objective)
    return tuple(found)
