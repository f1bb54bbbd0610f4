"""Temporary: builds the whole network."""

from __future__ import annotations

from collections.abc import Sequence

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.partition.stage_method import StageMethod
from dglpipe.partition.staged_network import build_staged_network
from dglpipe.pipeline.stage import StageModule


def build_own_stages(
    config: Config, method: StageMethod, data: DataInfo, spec: PipelineSpec, own: Sequence[int]
) -> dict[int, StageModule]:
    network = build_staged_network(config, method, data, spec.stages)
    return {j: network.learner(j) for j in own}
