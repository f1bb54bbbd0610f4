"""The loop of a process whose stages learn at a pace of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dglpipe.config import AsyncConfig
from dglpipe.methods.dgl import Chain, Outgoing
from dglpipe.methods.dgl_async.updates import StageUpdates
from dglpipe.monitoring import timers
from dglpipe.monitoring.timers import Timer
from dglpipe.pipeline.message import Field
from dglpipe.pipeline.stage import Stage
from dglpipe.runtime.trainer import Worker


class PacedChain(Chain):
    """A chain whose stages come to their end one by one.

    Args:
        paces: of its stages.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        fields: Mapping[int, Field],
        sender: Outgoing | None,
        timer: Timer,
        count: int,
        paces: Sequence[StageUpdates],
    ) -> None:
        super().__init__(stages, fields, sender, timer, count)
        self._paces = paces

    def eval_mode(self, on: bool) -> None:
        for pace in self._paces:
            pace.eval_mode(on)


class PacedWorker(Worker):
    """What simulated and real asynchronous learning have in common."""

    _paces: Sequence[StageUpdates]

    @property
    def _method(self) -> AsyncConfig:
        assert isinstance(self.config.method, AsyncConfig)
        return self.config.method

    def _set_out(self, stages: Sequence[Stage]) -> Sequence[StageUpdates]:
        reset, steps = self._method.reset_optimizer, self.plan.steps
        done = self.done_by()
        self._paces = [
            StageUpdates(stage, steps, reset, done.get(stage.index, self.done)) for stage in stages
        ]
        self._told = dict.fromkeys((stage.index for stage in stages), 0.0)
        return self._paces

    def _updated(self, pace: StageUpdates, rows: int) -> None:
        """Follows an update of a stage from so many rows."""
        stage, step = pace.stage, pace.updates
        if pace is self._paces[-1]:
            self._window_rows += rows
        if step % self.config.log_every == 0 or self.plan.ends_epoch(step):
            self._feed.check()
            now = timers.seconds(self._timer.snapshot())
            since = now - max(self._logged, self._told[stage.index])
            self._log_stage(stage, self.plan.fed(step).epoch, step, step, since)
            self._told[stage.index] = now
        self._save(step, [stage])
        if pace is self._paces[-1]:
            self._watch(step)

    def _final(self, stage: Stage, digest: str) -> dict[str, Any]:
        return {**super()._final(stage, digest), "staleness": self._staleness(stage)}

    def _staleness(self, stage: Stage) -> dict[str, Any]:
        """The entry of `stage` in `staleness` of `summary.json`."""
        raise NotImplementedError
