"""The batch schedule: the ordered list of all batches of a run (phase, batch index, rows).

The list is also called the stream plan. Every process derives the same list from the
configuration and the size of the data set, so that messages need not contain sizes, and every
stage sees the same batches in the same order (Algorithm 1 of Belilovsky et al., ICML 2020):

    epoch 1: train 1, train 2, ..., test 1, test 2, ...
    epoch 2: train ...

A round is one pass through all epochs. Sequential learning has one round per stage; all other
methods have one round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

from dglpipe.config import Config
from dglpipe.data.dataset import DataSource
from dglpipe.errors import ConfigError


class Phase(IntEnum):
    """What a batch is for."""

    TRAIN = 0
    TEST = 1
    PROBE = 2
    """Part of the probe batch, whose features are measured."""


class BatchItem(NamedTuple):
    """One batch of the schedule, as one replica sees it."""

    phase: Phase
    """Training, test or probe batch."""
    number: int
    """Index of the batch in its phase over the whole run, from 1. For training batches, equal to
    `step`."""
    epoch: int
    """Epoch over all rounds, from 1."""
    step: int
    """Training steps completed after this batch, over all rounds."""
    first: int
    """Offset of the first row of this replica, in the order of the epoch."""
    rows: int
    """Rows of this replica."""
    total: int
    """Rows of all replicas."""
    ends_pass: bool
    """Whether this is the last batch of its epoch or evaluation."""
    round: int
    """Round, from 0. In sequential learning, the stage that learns; otherwise 0."""
    round_epoch: int
    """Epoch within the round, from 1; determines batch order and augmentation."""
    round_step: int
    """Step within the round, from 1."""

    def __str__(self) -> str:
        return f"{self.phase.name.lower()} batch {self.number} of {self.rows} rows"


@dataclass(frozen=True)
class BatchSchedule:
    """The schedule of all batches of a run, determined by a few sizes.

    Raises:
        ConfigError: `batch_size` is larger than the training split, or less than 2 per replica;
            the probe batch is larger than the test split.
    """

    train: int
    """Images of the training split."""
    test: int
    """Images of the test split."""
    batch_size: int
    """Rows of a training batch over all replicas."""
    test_batch_size: int
    """Rows of a test batch over all replicas."""
    replicas: int
    """R, the number of data-parallel copies of the pipeline."""
    epochs: int
    """Epochs of a round."""
    max_steps: int | None
    """Maximum number of steps of a round; None: no limit."""
    evaluate_every: int
    """Epochs between two evaluations; 0: only after the last step of a round."""
    rounds: int = 1
    """Number of rounds: K in sequential learning, otherwise 1."""
    probe_every: int = 0
    """Steps of a round between two probe batches; 0: none."""
    probe: int = 0
    """Images of the probe batch."""

    def __post_init__(self) -> None:
        if self.batch_size > self.train:
            allowed = f"at most the {self.train} training samples of the data set"
            raise ConfigError("batch_size", self.batch_size, allowed)
        if self.batch_size < 2 * self.replicas:
            allowed = f"at least {2 * self.replicas}: batch norm needs 2 rows per replica"
            raise ConfigError("batch_size", self.batch_size, allowed)
        if self.probe_every and self.probe > self.test:
            allowed = f"at most the {self.test} test samples of the data set"
            raise ConfigError("probe.batch_size", self.probe, allowed)

    @cached_property
    def left_out(self) -> int:
        """Rows of the last batch of an epoch, if dropped; 0: not dropped.

        The last batch is dropped if it has fewer than 2 rows per replica: batch norm needs 2.
        """
        rest = self.train % self.batch_size
        return rest if rest < 2 * self.replicas else 0

    @cached_property
    def steps_per_epoch(self) -> int:
        """Training steps of a full epoch."""
        return -(-(self.train - self.left_out) // self.batch_size)

    @cached_property
    def steps_per_round(self) -> int:
        """Training steps of a round."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    @cached_property
    def steps(self) -> int:
        """Training steps of the run, over all rounds."""
        return self.rounds * self.steps_per_round

    @property
    def test_batches(self) -> int:
        """Batches of one evaluation."""
        return -(-self.test // self.test_batch_size)

    def warm_after(self, done: int) -> int:
        """The step after which throughput is measured, of a run that starts at step `done`.

        Excludes the first steps, in which the pipeline fills and the data loader starts. A run
        that resumes excludes as many steps.
        """
        return done + min(10, (self.steps - done) // 4)

    def items(self, replica: int = 0, done: int = 0) -> Iterator[BatchItem]:
        """Yields the batches of `replica` after `done` training steps, in order.

        The evaluation and the probe batch after step `done` are included.
        """
        evaluations = sum(map(self._evaluates_after, range(1, done)))
        for step in range(done, self.steps + 1):
            if step > done:
                yield self._train_item(step, replica)
            if step and self._evaluates_after(step):
                yield from self._test_items(step, evaluations, replica)
                evaluations += 1
            if step and self._probes_after(step):
                yield from self._probe_items(step, replica)

    def fed(self, number: int) -> BatchItem:
        """Training batch `number`, from 1, of a schedule that does not end.

        Batches up to `steps` equal the batches of `items`; further epochs follow. Asynchronous
        training needs further epochs, since stage 0 produces batches until every stage has
        finished its steps. For schedules of one replica and one round.
        """
        epoch, inside = self._epoch(number), (number - 1) % self.steps_per_epoch
        first = inside * self.batch_size
        rows = min(self.batch_size, self.train - first)
        ends = inside == self.steps_per_epoch - 1 or number == self.steps_per_round
        where = (first, rows, rows, ends, 0, epoch, number)
        return BatchItem(Phase.TRAIN, number, epoch, number, *where)

    def tests_after(self, step: int) -> Sequence[BatchItem]:
        """The test batches of the evaluation after `step`; empty: no evaluation.

        For schedules of one replica.
        """
        at = self._evaluations.get(step)
        return [] if at is None else list(self._test_items(step, at, 0))

    def last_tests(self) -> Sequence[BatchItem]:
        """The test batches of the evaluation after the last step."""
        return [item for item in self.items(done=self.steps) if item.phase is Phase.TEST]

    def test_item(self, number: int) -> BatchItem:
        """Test batch `number` of the run, from 1 to `last_test`.

        For schedules of one replica.
        """
        evaluation, batch = divmod(number - 1, self.test_batches)
        return self._test_batch(self._evaluated_steps[evaluation], evaluation, 0, batch)

    def tests_before(self, step: int) -> int:
        """Number of test batches in the evaluations after steps before `step`."""
        return bisect_left(self._evaluated_steps, step) * self.test_batches

    @property
    def last_test(self) -> int:
        """`number` of the last test batch of the run."""
        return len(self._evaluations) * self.test_batches

    @cached_property
    def _evaluations(self) -> dict[int, int]:
        """Step -> number, from 0, of the evaluation after this step; increasing."""
        steps = (step for step in range(1, self.steps + 1) if self._evaluates_after(step))
        return {step: at for at, step in enumerate(steps)}

    @cached_property
    def _evaluated_steps(self) -> list[int]:
        return list(self._evaluations)

    def crossing(self, item: BatchItem, below: int) -> BatchItem:
        """`item` as a message on the link `below -> below + 1`.

        The message has no rows if the stage above does not process the batch: in sequential
        learning, while a stage up to `below` learns.
        """
        if self.rounds == 1 or item.phase is not Phase.TRAIN or item.round > below:
            return item
        return item._replace(rows=0)

    def largest_rows(self, phase: Phase) -> int:
        """Rows of the largest batch of one replica."""
        batch = min(self.batch_size, self.train)
        if phase is not Phase.TRAIN:
            batch = min(self.test_batch_size, self.test)
        return spread(batch, self.replicas)[0]

    def _evaluates_after(self, step: int) -> bool:
        _, step = self._round_and_step(step)
        if step == self.steps_per_round:
            return True
        epoch, inside = divmod(step, self.steps_per_epoch)
        return inside == 0 and self.evaluate_every > 0 and epoch % self.evaluate_every == 0

    def _probes_after(self, step: int) -> bool:
        _, step = self._round_and_step(step)
        return self.probe_every > 0 and step % self.probe_every == 0

    def last_evaluation_before(self, step: int) -> int:
        """Step of the last evaluation that follows a step before `step`; 0 if there is none."""
        if step <= 1:
            return 0
        round_, inside = self._round_and_step(step - 1)
        if inside == self.steps_per_round:
            return step - 1
        period = self.evaluate_every * self.steps_per_epoch
        return round_ * self.steps_per_round + (inside // period * period if period else 0)

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last step of its epoch."""
        _, inside = self._round_and_step(step)
        return inside % self.steps_per_epoch == 0 or inside == self.steps_per_round

    def _round_and_step(self, step: int) -> tuple[int, int]:
        """The round, from 0, that contains `step`, and the step within the round, from 1."""
        round_, before = divmod(step - 1, self.steps_per_round)
        return round_, before + 1

    def _epoch(self, step: int) -> int:
        """The epoch, from 1, that contains `step` of a round."""
        return -(-step // self.steps_per_epoch)

    def _item(
        self, phase: Phase, number: int, step: int, share: tuple[int, int], total: int, ends: bool
    ) -> BatchItem:
        round_, round_step = self._round_and_step(step)
        round_epoch = self._epoch(round_step)
        epoch = round_ * self._epoch(self.steps_per_round) + round_epoch
        place = (round_, round_epoch, round_step)
        return BatchItem(phase, number, epoch, step, *share, total, ends, *place)

    def _train_item(self, step: int, replica: int) -> BatchItem:
        _, inside = self._round_and_step(step)
        at = (inside - 1) % self.steps_per_epoch * self.batch_size
        total = min(self.batch_size, self.train - at)
        first, rows = _share(total, self.replicas, replica)
        where = (at + first, rows)
        return self._item(Phase.TRAIN, step, step, where, total, self.ends_epoch(step))

    def _test_items(self, step: int, evaluations: int, replica: int) -> Iterator[BatchItem]:
        for batch in range(self.test_batches):
            yield self._test_batch(step, evaluations, replica, batch)

    def _probe_items(self, step: int, replica: int) -> Iterator[BatchItem]:
        """The probe batch in parts, which are no larger than test batches. Replica 0 has all
        rows: its buffers are not averaged over the replicas, as they are for an evaluation."""
        most = self.largest_rows(Phase.PROBE)
        parts = -(-self.probe // most)
        round_, inside = self._round_and_step(step)
        before = round_ * (self.steps_per_round // self.probe_every)
        before += inside // self.probe_every - 1
        for part in range(parts if replica == 0 else 0):
            first = part * most
            rows = min(most, self.probe - first)
            number = before * parts + part + 1
            ends = part == parts - 1
            yield self._item(Phase.PROBE, number, step, (first, rows), rows, ends)

    def probe_rows(self, item: BatchItem) -> list[int]:
        """Indices in the test split of the rows of a probe batch. They are spread evenly over the
        split, which may be sorted by class."""
        rows = range(item.first, item.first + item.rows)
        return [row * self.test // self.probe for row in rows]

    def _test_batch(self, step: int, evaluations: int, replica: int, batch: int) -> BatchItem:
        """Batch `batch`, from 0, of the evaluation after `step`, which follows `evaluations`."""
        at = batch * self.test_batch_size
        total = min(self.test_batch_size, self.test - at)
        first, rows = _share(total, self.replicas, replica)
        number = evaluations * self.test_batches + batch + 1
        ends = batch == self.test_batches - 1
        return self._item(Phase.TEST, number, step, (at + first, rows), total, ends)


def _share(total: int, replicas: int, replica: int) -> tuple[int, int]:
    """Offset of the first row, and number of rows, of `replica` in a batch of `total` rows."""
    if replicas == 1:
        return 0, total
    sizes = spread(total, replicas)
    return sum(sizes[:replica]), sizes[replica]


def build_batch_schedule(config: Config, source: DataSource, rounds: int = 1) -> BatchSchedule:
    """Builds the batch schedule of a run.

    Args:
        config: configuration of the run.
        source: data set.
        rounds: how often the run goes through its epochs.

    Raises:
        ConfigError: as `BatchSchedule`.
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
        probe_every=config.probe.every,
        probe=config.probe.batch_size,
    )


def spread(count: int, parts: int) -> list[int]:
    """Splits `count` into `parts` sizes that differ by at most 1, larger sizes first."""
    small, larger = divmod(count, parts)
    return [small + 1] * larger + [small] * (parts - larger)
