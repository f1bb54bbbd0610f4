"""Builds a stage module: segments and auxiliary modules."""

from __future__ import annotations

from torch import fx, nn

from dglpipe.config import Config
from dglpipe.models.heads import HEAD
from dglpipe.models.meta import building
from dglpipe.partition.fx.pooling import split_pools
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.partition.stage_method import StageMethod
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.seeds import derive


def build_auxiliary(
    config: Config,
    method: StageMethod,
    spec: PipelineSpec,
    j: int,
    following: nn.Module | None = None,
    meta: bool = False,
) -> dict[str, nn.Module]:
    """The auxiliary modules of stage `j` by name; none for the last stage.

    Their weights depend on the seed, the name and the position of the cut, not on K.

    Args:
        following: the first segment above the stage; see `Boundary.following`.
    """
    if j == spec.stages - 1:
        return {}
    builders = method.auxiliary(spec.boundary(j, config.stage(j).head, following))
    modules = {}
    for name, build in builders.items():
        with building(meta, derive(config.seed, name, spec.bounds[j + 1])):
            modules[name] = build()
    return modules


def split_read(segments: fx.GraphModule, spec: PipelineSpec, j: int) -> nn.Module | None:
    """Removes the pools at the end of `segments` and returns them as a module, if the auxiliary
    modules of stage `j` read the map in front of them; None otherwise."""
    is_read = j < spec.stages - 1 and spec.reads[j] is not None
    return split_pools(segments) if is_read else None


def stage_module(
    segments: nn.Module, auxiliary: dict[str, nn.Module], is_last: bool, pools: nn.Module | None
) -> StageModule:
    """The module of a stage; the last stage and every stage with a head are exits.

    Args:
        pools: see `split_read`.
    """
    return StageModule(segments, auxiliary, is_last or HEAD in auxiliary, pools)
