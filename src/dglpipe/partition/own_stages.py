"""Builds the stages of one process without storing the weights of the other stages."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.models import build_network
from dglpipe.models.meta import building
from dglpipe.models.partial import PartialBuildError, building_stored, recording
from dglpipe.partition.following import own_followings
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.partition.segments import trace
from dglpipe.partition.split import cut
from dglpipe.partition.stage_method import StageMethod
from dglpipe.partition.stage_modules import build_auxiliary, split_read, stage_module
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.seeds import derive

logger = logging.getLogger("dglpipe")


def build_own_stages(
    config: Config, method: StageMethod, data: DataInfo, spec: PipelineSpec, own: Sequence[int]
) -> dict[int, StageModule]:
    """Builds the stages `own` with the same weights as in the network built as a whole.

    Only the parameters of these stages and one other parameter at a time are in memory. A network
    whose builder reads the values of parameters is built as a whole; then the other stages are
    dropped.

    Raises:
        ConfigError: the network cannot be built.
    """
    parts = None
    if len(own) < spec.stages:
        try:
            parts = _build_in_part(config, method, data, spec, own)
        except Exception as error:  # a builder of the user may raise any exception
            logger.info("the whole network is built for stages %s: %s", list(own), error)
    if parts is None:
        parts = _build_whole(config, method, data, spec, own)
    own_stages = {}
    for j in own:
        segments = parts.stages[j]
        auxiliary = build_auxiliary(config, method, spec, j, parts.followings.get(j))
        method.prepare(j, segments)
        pools = split_read(segments, spec, j)
        own_stages[j] = stage_module(segments, auxiliary, j == spec.stages - 1, pools)
    return own_stages


class _Parts(NamedTuple):
    """The parts of the network that one process needs, by stage."""

    stages: dict[int, fx.GraphModule]
    followings: dict[int, nn.Module]

    @property
    def modules(self) -> list[nn.Module]:
        """All parts, in a fixed order."""
        return [*self.stages.values(), *self.followings.values()]


def _build_in_part(
    config: Config, method: StageMethod, data: DataInfo, spec: PipelineSpec, own: Sequence[int]
) -> _Parts:
    seed = derive(config.seed, "network")
    with recording(seed) as found:
        network = _network(config, data)
    expected = _cut(network, method, spec, own)
    owned = {id(one) for module in expected.modules for one in module.parameters()}
    registered = {id(one) for one in found.parameters}
    if not owned <= registered:
        raise PartialBuildError("a parameter was never registered")
    stored = [id(one) in owned for one in found.parameters]
    with building_stored(seed, found.kinds, stored):
        network = _network(config, data)
    parts = _cut(network, method, spec, own)
    for module, wanted in zip(parts.modules, expected.modules, strict=True):
        _check(module, wanted)
    return parts


def _check(module: nn.Module, expected: nn.Module) -> None:
    """Raises PartialBuildError if tensors of a stage are on meta or differ from `expected`."""
    if any(one.is_meta for one in itertools.chain(module.parameters(), module.buffers())):
        raise PartialBuildError("a parameter depends on one that is not stored")
    tensors, wanted = module.state_dict(), expected.state_dict()
    if list(tensors) != list(wanted) or any(
        tensors[key].shape != wanted[key].shape for key in wanted
    ):
        raise PartialBuildError("the keys of a stage differ")


def _build_whole(
    config: Config, method: StageMethod, data: DataInfo, spec: PipelineSpec, own: Sequence[int]
) -> _Parts:
    with building(False, derive(config.seed, "network")):
        network = _network(config, data)
    return _cut(network, method, spec, own)


def _network(config: Config, data: DataInfo) -> nn.Module:
    return build_network(config.model, data.channels, len(data.classes), data.height)


def _cut(network: nn.Module, method: StageMethod, spec: PipelineSpec, own: Sequence[int]) -> _Parts:
    traced = trace(network.to(memory_format=torch.channels_last), method.watches_branches)
    modules = cut(traced, spec.bounds)
    return _Parts({j: modules[j] for j in own}, own_followings(method, traced, spec.bounds, own))
