"""The stream plan: every message of a run, in order, before anything has started.

Each process derives the same plan from the configuration and the size of the data set, so
no size ever travels (the paper's Algorithm 1: every stage sees the same batches in the same
order).

    epoch 1: train 1, train 2, ..., test 1, test 2, ...
    epoch 2: train ...

Sequential learning goes through all epochs once a stage: its rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from dglpipe.config import (
    Config,
)
from dglpipe.data import DataSource
from dglpipe.errors import ConfigError


class Phase(IntEnum):
    """What a batch is for."""

    TRAIN = 0
    TEST = 1


class BatchItem(NamedTuple):
    """One batch as one replica sees it."""

    phase: Phase
    number: int
    """Of the batch in its phase over the whole run, from 1; of training: the step."""
    epoch: int
    """From 1, over all rounds."""
    step: int
    """Training steps done when the batch is through, over all rounds."""
    first: int
    """Offset of this replica's first row in the order of the epoch."""
    rows: int
    """Rows of this replica."""
    total: int
    """Rows of all replicas."""
    ends_pass: bool
    """Last batch of its epoch or of its evaluation."""
    round: int
    """From 0; 0 but in sequential learning, where it is the stage that learns."""
    round_epoch: int
    """The epoch, counted from 1 in every round: it determines order and augmentation."""
    round_step: int
    """The step, counted from 1 in every round."""

    def __str__(self) -> str:
        return f"{self.phase.name.lower()} batch {self.number} of {self.rows} rows"


@dataclass(frozen=True)
class BatchSchedule:
    """The sizes that determine every item.

    Raises:
        ConfigError: a batch larger than the data set, or too small for the replicas.
    """

    train: int
    test: int
    batch_size: int
    test_batch_size: int
    replicas: int
    epochs: int
    max_steps: int | None
    evaluate_every: int
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.batch_size > self.train:
            allowed = f"at most the {self.train} training samples of the data set"
            raise ConfigError("batch_size", self.batch_size, allowed)
        if self.batch_size < 2 * self.replicas:
            allowed = f"at least {2 * self.replicas}: batch norm needs 2 rows a replica"
            raise ConfigError("batch_size", self.batch_size, allowed)

    @cached_property
    def left_out(self) -> int:
        """Rows of a last batch too small for batch norm: 2 rows a replica or it is left out."""
        rest = self.train % self.batch_size
        return rest if rest < 2 * self.replicas else 0

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-(self.train - self.left_out) // self.batch_size)

    @cached_property
    def steps_per_round(self) -> int:
        """Training steps of a stage."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @cached_property
    def steps(self) -> int:
        """Training steps of the run."""
        return self.rounds * self.steps_per_round

    @property
    def test_batches(self) -> int:
        return -(-self.test // self.test_batch_size)

    def warm_after(self, done: int) -> int:
        """The step behind which the throughput window opens in a run that goes on from `done`:
        its chain fills and its loader starts as those of a fresh one do."""
        return done + min(10, (self.steps - done) // 4)

    def items(self, replica: int = 0, done: int = 0) -> Iterator[BatchItem]:
        """The items of `replica` that follow `done` training steps, in order."""
        evaluations = self._evaluations_before(done)
        for step in range(done, self.steps + 1):
            if step > done:
                yield self._train_item(step, replica)
            if step and self._evaluates_after(step):
                yield from self._test_items(step, evaluations, replica)
                evaluations += 1

    def fed(self, number: int) -> BatchItem:
        """Training batch `number` of a run without replicas that goes on as long as somebody
        wants batches: as planned, then on through more epochs."""
        epoch, inside = self._epoch(number), (number - 1) % self.steps_per_epoch
        first = inside * self.batch_size
        rows = min(self.batch_size, self.train - first)
        ends = inside == self.steps_per_epoch - 1 or number == self.steps_per_round
        where = (first, rows, rows, ends, 0, epoch, number)
        return BatchItem(Phase.TRAIN, number, epoch, number, *where)

    def tests_after(self, step: int) -> Sequence[BatchItem]:
        """The items of the evaluation that follows `step`, without replicas; none if there is
        none."""
        at = self._evaluated.get(step)
        return [] if at is None else list(self._test_items(step, at, 0))

    @property
    def last_test(self) -> int:
        """Number of the last test batch of the run."""
        return len(self._evaluated) * self.test_batches

    @cached_property
    def _evaluated(self) -> dict[int, int]:
        """The steps behind which there is an evaluation, rising, and its number from 0."""
        steps = (step for step in range(1, self.steps + 1) if self._evaluates_after(step))
        return {step: at for at, step in enumerate(steps)}

    def crossing(self, item: BatchItem, below: int) -> BatchItem:
        """`item` as it goes over the link behind stage `below`: without rows where the stage
        above has nothing to do with it."""
        if self.rounds == 1 or item.phase is Phase.TEST or item.round > below:
            return item
        return item._replace(rows=0)

    def largest_rows(self, phase: Phase) -> int:
        """Rows of the largest batch that one replica can see."""
        batch = min(self.batch_size, self.train)
        if phase is Phase.TEST:
            batch = min(self.test_batch_size, self.test)
        return spread(batch, self.replicas)[0]

    def _evaluates_after(self, step: int) -> bool:
        _, step = self._place(step)
        if step == self.steps_per_round:
            return True
        epoch, inside = divmod(step, self.steps_per_epoch)
        return inside == 0 and self.evaluate_every > 0 and epoch % self.evaluate_every == 0

    def _evaluations_before(self, step: int) -> int:
        return sum(self._evaluates_after(earlier) for earlier in range(1, step))

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of its epoch."""
        _, inside = self._place(step)
        return inside % self.steps_per_epoch == 0 or inside == self.steps_per_round

    def _place(self, step: int) -> tuple[int, int]:
        """The round of a step, and its number in there."""
        round_, before = divmod(step - 1, self.steps_per_round)
        return round_, before + 1

    def _epoch(self, step: int) -> int:
        return -(-step // self.steps_per_epoch)

    def _item(
        self, phase: Phase, number: int, step: int, share: tuple[int, int], total: int, ends: bool
    ) -> BatchItem:
        round_, round_step = self._place(step)
        round_epoch = self._epoch(round_step)
        epoch = round_ * self._epoch(self.steps_per_round) + round_epoch
        where = (round_, round_epoch, round_step)
        return BatchItem(phase, number, epoch, step, *share, total, ends, *where)

    def _train_item(self, step: int, replica: int) -> BatchItem:
        _, inside = self._place(step)
        at = (inside - 1) % self.steps_per_epoch * self.batch_size
        total = min(self.batch_size, self.train - at)
        first, rows = _share(total, self.replicas, replica)
        where = (at + first, rows)
        return self._item(Phase.TRAIN, step, step, where, total, self.ends_epoch(step))

    def _test_items(self, step: int, evaluations: int, replica: int) -> Iterator[BatchItem]:
        for batch in range(self.test_batches):
            at = batch * self.test_batch_size
            total = min(self.test_batch_size, self.test - at)
            first, rows = _share(total, self.replicas, replica)
            number = evaluations * self.test_batches + batch + 1
            ends = batch == self.test_batches - 1
            yield self._item(Phase.TEST, number, step, (at + first, rows), total, ends)


def _share(total: int, replicas: int, replica: int) -> tuple[int, int]:
    """Offset and number of the rows of `replica` in a batch of `total` rows."""
    if replicas == 1:
        return 0, total
    sizes = spread(total, replicas)
    return sum(sizes[:replica]), sizes[replica]


def build_batch_schedule(config: Config, source: DataSource, rounds: int = 1) -> BatchSchedule:
    """The batch schedule that `config` and the sizes of the data set determine.

    Args:
        rounds: how often the run goes through its epochs.
    """
    return BatchSchedule(
        train=source.info.train,
        test=source.info.test,
        batch_size=config.batch_size,
        test_batch_size=config.evaluate.batch_size or config.batch_size,
        replicas=config.pipeline.replicas,
        epochs=config.epochs,
        max_steps=config.max_steps,
        evaluate_every=config.evaluate.every,
        rounds=rounds,
    )


def spread(count: int, parts: int) -> list[int]:
    """Sizes of `parts` shares of `count` that differ by at most 1, the larger first."""
    small, larger = divmod(count, parts)
    return [small + 1] * larger + [small] * (parts - larger)
