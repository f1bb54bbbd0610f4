"""The method `dgl_async`: asynchronous decoupled greedy learning (Algorithm 2 of the paper)."""

from __future__ import annotations

from dglpipe.config import AsyncConfig, Config, PipelineConfig
from dglpipe.data.batch_schedule import BatchSchedule
from dglpipe.errors import ConfigError
from dglpipe.methods.base import Placement, RunContext
from dglpipe.methods.dgl import Dgl
from dglpipe.methods.dgl_async.distributed import DistributedRunner
from dglpipe.methods.dgl_async.simulation import SimulatedRunner
from dglpipe.methods.runner import Runner
from dglpipe.pipeline.link import LinkBuffers
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.pipeline.topology import Layout

SPARE = 2
"""Message slots in addition to the M batches, for a link with policy=overwrite: one for the message
in flight, and one for a batch that left the buffer while the stage learns from it."""


class DglAsync(Dgl):
    """Each stage learns from one of the last M batches of the stage below, without waiting."""

    settings: AsyncConfig
    measures = False
    survives_alone = True

    def placement(self, pipeline: PipelineConfig, given: int | None) -> Placement:
        """One process per stage, or one process that simulates all stages."""
        settings = self.settings
        stages = pipeline.stages or given or 2
        settings.check_stages(stages)
        if pipeline.replicas > 1:
            hint = "Replicas average gradients in every step, but these stages have no common step"
            got, allowed = pipeline.replicas, "1 with method=dgl_async"
            raise ConfigError("pipeline.replicas", got, allowed, hint)
        wanted = 1 if settings.simulate else stages
        got = pipeline.processes or given or wanted
        if got != wanted:
            hint = "Every stage learns at its own speed, in its own process"
            if settings.simulate:
                hint = "One process runs all stages of a simulation"
            raise ConfigError("pipeline.processes", got, str(wanted), hint)
        return Placement(stages, wanted)

    def check(self, config: Config, layout: Layout, schedule: BatchSchedule) -> None:
        """Raises ConfigError for test batches larger than training batches."""
        rows = config.evaluate.batch_size
        if rows is not None and rows > config.batch_size and not self.settings.simulate:
            hint = "All messages of method=dgl_async have the size of the largest batch"
            allowed = f"at most {config.batch_size}"
            raise ConfigError("evaluate.batch_size", rows, allowed, hint)

    def buffers(self, link: int, depth: int) -> LinkBuffers:
        """D message slots; with policy=overwrite, also M stored batches."""
        settings, precision = self.settings, self.settings.storage_precision
        item_bytes = None if precision is None else PRECISIONS[precision].item_bytes
        if settings.simulate:
            return LinkBuffers(0, 0, settings.buffer, item_bytes)
        if settings.policy_of(link) == "block":
            return LinkBuffers(sender=1, receiver=depth)
        return LinkBuffers(depth, SPARE, settings.buffer, item_bytes)

    def runner(self, context: RunContext) -> Runner:
        kind = SimulatedRunner if self.settings.simulate else DistributedRunner
        return kind(context, self.settings)
