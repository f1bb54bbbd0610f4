"""Whose turn it is in a simulation of asynchronous learning, and what it reads. Pure.

The paper's simulation: a worker is drawn, stage 0 takes the next batch, any other stage an entry
of its buffer; what it makes of it goes into the next buffer, over the oldest entry (Algorithm 2).
All of that follows from the seed, so the order of a whole run is known before anything is computed.
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
    """One stage comes to a batch."""

    stage: int
    read: int
    """Of stage 0: number of the batch of the data set. Of others: of the output of the stage
    below, from 1."""
    written: int
    """Number of its own output, from 1."""
    gone: int | None
    """Number of the output that this one takes the place of."""


class DrawOrder:
    """The order of a simulation.

    Args:
        seed: of the draws.
        after: turns that a run which is resumed has had before.

    Attributes:
        replays: the buffer in front of every stage but stage 0; they hold numbers of outputs.
        skipped: turns of every stage in which nothing could be read.
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
        """Every turn of the run, with an evaluation whenever all stages have come to one.

        A stage that has made its updates still has turns, in which it feeds the next one. Of a run
        that is resumed, what follows its last turn.
        """
        turns = 0
        for event in self._events():
            if turns >= self._after:
                yield event
            turns += isinstance(event, Draw)

    def _events(self) -> Iterator[Draw | BatchItem]:
        """The same, from the start."""
        through = 0
        for stage in self._stages():
            turn = self._turn(stage)
            if turn is None:
                self.skipped[stage] += 1
                continue
            yield turn
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

    def _turn(self, stage: int) -> Draw | None:
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
        written, gone = self._written[stage], None
        if stage < len(self.replays):
            gone = self.replays[stage].write(written)
        return Draw(stage, source, written, gone)


def draw_weights(method: AsyncConfig, stages: int) -> Sequence[float]:
    """How likely the turn of each stage is, up to a factor: a stage S times slower has 1/S."""
    return [1 / method.slowdown_of(stage) for stage in range(stages)]
