"""The order of events in a simulation of asynchronous learning, without tensors.

In each draw, the simulation of the paper selects a stage. Stage 0 reads the next batch of the data
set; any other stage reads an entry of its buffer. The output replaces the oldest entry of the next
buffer (Algorithm 2). The seed determines all draws, so the order of a run is known in advance.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule
from dglpipe.methods.dgl_async.replay import Replay
from dglpipe.seeds import derive


class Draw(NamedTuple):
    """One stage reads a batch and writes its output."""

    stage: int
    read: int
    """Number of the batch that the stage reads, from 1: batch of the data set in stage 0, output of
    the stage below in other stages."""
    written: int
    """Number of the output that the stage writes, from 1."""
    replaced: int | None
    """Number of the output that the new output replaces; None: the buffer was not full."""


class DrawOrder:
    """The order of events in a simulation.

    Args:
        seed: seed of the draws.
        after: number of draws before the run was resumed.

    Attributes:
        replays: entry j: the buffer of stage j + 1, which holds output numbers of stage j.
        skipped: entry j: draws of stage j in which its buffer had no batch that may be read.
    """

    def __init__(
        self, method: AsyncConfig, stages: int, plan: BatchSchedule, seed: int, after: int = 0
    ) -> None:
        self.replays = [
            Replay[int](method.buffer, method.read_rule, method.max_reuse, method.max_age)
            for _ in range(stages - 1)
        ]
        self.skipped = [0] * stages
        self._method = method
        self._plan = plan
        self._updates = [0] * stages
        self._after = after
        self._written = [0] * stages
        self._fed = 0
        self._generator = random.Random(derive(seed, "turns"))

    def __iter__(self) -> Iterator[Draw | BatchItem]:
        """Yields the draws of the run, and the test batches of an evaluation when all stages have
        reached its step.

        A stage that has made its updates is still drawn, to feed the next stage. A resumed run
        continues after its last draw.
        """
        draws = 0
        for event in self._events():
            if draws >= self._after:
                yield event
            draws += isinstance(event, Draw)

    def _events(self) -> Iterator[Draw | BatchItem]:
        """All draws and evaluations, from the start of the run."""
        through = 0
        for stage in self._stages():
            draw = self._draw(stage)
            if draw is None:
                self.skipped[stage] += 1
                continue
            yield draw
            self._updates[stage] += 1
            if min(self._updates) > through:
                through += 1
                yield from self._plan.tests_after(through)
                if through == self._plan.steps:
                    return

    def _stages(self) -> Iterator[int]:
        stages = range(len(self._updates))
        if self._method.warmup:
            yield from itertools.chain.from_iterable((stage, stage) for stage in stages)
        if self._method.order == "sequential":
            yield from itertools.cycle(stages)
        shares = draw_weights(self._method, len(stages))
        while True:
            yield from self._generator.choices(stages, shares, k=1)

    def _draw(self, stage: int) -> Draw | None:
        if stage == 0:
            self._fed += 1
            source = self._fed
        else:
            learns = self._updates[stage] < self._plan.steps
            read = self.replays[stage - 1].read(learns=learns)
            if read is None:
                return None
            source = read.value
        self._written[stage] += 1
        written, replaced = self._written[stage], None
        if stage < len(self.replays):
            replaced = self.replays[stage].write(written)
        return Draw(stage, source, written, replaced)


def draw_weights(method: AsyncConfig, stages: int) -> Sequence[float]:
    """Relative probability of drawing each stage: 1/S for a stage that is S times slower."""
    return [1 / method.slowdown_of(stage) for stage in range(stages)]
