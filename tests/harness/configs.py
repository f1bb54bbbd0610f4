"""Small configurations and layouts."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dglpipe.cli.compose import Arguments, compose
from dglpipe.config import Config, parse, to_tree
from dglpipe.data import DataInfo
from dglpipe.methods import build_run_method
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.topology import Layout


def in_test_all(*values: object) -> Any:
    """An entry of `parametrize` that runs in `make test-all` only."""
    return pytest.param(*values, marks=pytest.mark.slow)


SMALL = (
    "batch_size=400",
    "epochs=2",
    "optimizer.lr=0.05",
    "timeout_s=30",
    "pipeline.threads=1",
    "pipeline.split=even",
    "pipeline.checked=true",
)
"""Digits in 4 batches per epoch, the last of 237 rows; links check for misuse of buffers."""
WIDTH = "model.width=4"
WORLDS = [
    *((2, 2), (3, 1), (3, 2), (6, 6)),
    *(in_test_all(*one) for one in ((2, 1), (3, 3), *((6, count) for count in range(1, 6)))),
]
"""Stages and processes whose weights are compared bit for bit."""
GROUPS = ("model", "head", "local", "data", "optimizer", "schedule", "method", "precision")


def make_config(*overrides: str) -> Config:
    """A small run of `cnn6` (or another `model=`), with `overrides` as on the command line."""
    other = any(override.startswith("model=") for override in overrides)
    return copy.deepcopy(_composed((*SMALL, *(() if other else (WIDTH,)), *overrides)))


@functools.lru_cache
def _composed(overrides: tuple[str, ...]) -> Config:
    """Composing with Hydra takes tenths of a second: once for each choice of groups."""
    groups = tuple(one for one in overrides if one.partition("=")[0] in GROUPS)
    tree = to_tree(_composed_groups(groups))
    others = [one for one in overrides if one not in groups]
    for override in OverridesParser.create().parse_overrides(others):
        *path, last = override.key_or_group.split(".")
        node = functools.reduce(dict.__getitem__, path, tree)
        assert last in node, f"no such key: {override.key_or_group}"
        node[last] = override.value()
    return parse(tree)


@functools.lru_cache
def _composed_groups(groups: tuple[str, ...]) -> Config:
    custom = [one.removesuffix("=custom") for one in groups if one.endswith("=custom")]
    targets = [f"{group}.target=harness.plug_ins:plain_network" for group in custom]
    if "model=torchvision" in groups:
        targets.append("model.name=resnet18")
    return compose(Arguments([*groups, *targets]))


def layout(stages: int, processes: int | None = None, replicas: int = 1) -> Layout:
    """A layout with one thread per process; P = K unless given."""
    return Layout(stages, processes or stages, replicas, threads=1)


def small(*overrides: str) -> list[str]:
    """The overrides of `make_config`, for a command line."""
    return [*SMALL, WIDTH, *overrides]


def build_stages(
    config: Config, data: DataInfo, stages: int, meta: bool = False, rows: int | None = None
) -> StagedNetwork:
    """The network of `config` in K stages; see `build_staged_network`."""
    method = build_run_method(config, stages, data)
    return build_staged_network(config, method, data, stages, meta, rows)
