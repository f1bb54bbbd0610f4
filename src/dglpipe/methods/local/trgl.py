"""TRGL: residual branches that move their input little.

Karkar et al., Module-wise training of neural networks via the minimizing movement scheme, NeurIPS
2023 (arXiv 2309.17357):

    loss = CE(head(h), y) + 1 / (2 tau) sum of mean(r^2) over the residual branches r of the stage

As published, tau is halved in the first half of the stages. The last stage is regularised as well.
"""

from __future__ import annotations

from torch import Tensor

from dglpipe.config import TrglConfig
from dglpipe.errors import ConfigError
from dglpipe.methods.local.base import LocalObjective
from dglpipe.partition.pipeline_spec import PipelineSpec
from dglpipe.pipeline.stage_module import LocalBatch


class Trgl(LocalObjective):
    """The loss of the head, and the transport cost of the residual branches."""

    settings: TrglConfig
    acts_in_last_stage = True
    watches_branches = True

    @property
    def tau(self) -> float:
        """The step size of the stage."""
        is_early = self.stage < self.stages // 2
        return self.settings.tau / 2 if is_early else self.settings.tau

    def check_cut(self, spec: PipelineSpec) -> None:
        """Refuses networks without residual branches."""
        if all(layer.kind == "plain" for layer in spec.layers):
            hint = "This network has none"
            raise ConfigError("local.name", "trgl", "networks with residual branches", hint)

    def loss(self, batch: LocalBatch) -> Tensor:
        """Both losses."""
        task = super().loss(batch)
        return task + sum(batch.branch_costs) / (2 * self.tau)
