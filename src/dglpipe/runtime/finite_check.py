"""Stops or warns when a loss, a weight or a buffer is NaN or infinite (`on_nonfinite`).

No step waits for the device. The losses of all steps are read with the next training line, before a
checkpoint and at the end, so that the first bad step is known exactly. Weights, buffers and the
state of the optimizer are read before they are written: for a checkpoint and at the end. A loss
scaler skips steps with infinite gradients; such a step is not an error, because its loss is finite.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from dglpipe.errors import NonFiniteError, NonFinitePeerError
from dglpipe.methods.base import RunContext
from dglpipe.methods.events import Evaluation, Update
from dglpipe.pipeline.stage import Stage

logger = logging.getLogger("dglpipe")

AGREE_S = 2.0
"""Seconds in which the other processes can report an earlier step or a lower stage."""
ADVICE = "Lower optimizer.lr or set optimizer.clip; on_nonfinite=warn goes on regardless"
LOSS, STATE, TEST = range(3)
"""What can be bad after a step, in the order in which it becomes bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The first non-finite value of a stage.

    Attributes:
        stage: j.
        step: training step of the run, from 1.
        kind: `LOSS`, `STATE` or `TEST`.
        text: the value, the learning rate and the last finite loss.
    """

    stage: int
    step: int
    kind: int
    text: str

    def describe(self) -> str:
        return f"on_nonfinite: stage {self.stage}, step {self.step}: {self.text}"


@dataclass(slots=True)
class _Seen:
    """What is known of the losses of one stage."""

    last: tuple[int, float] | None = None
    """Step and value of the last finite loss."""
    bad: set[int] = field(default_factory=set)
    """Steps with a loss that is not finite."""
    is_told: bool = False


class FiniteCheck:
    """Checks the stages of one process.

    Args:
        stages: the stages of the process, in order.
    """

    def __init__(self, context: RunContext, stages: Sequence[Stage]) -> None:
        self._policy = context.plan.config.on_nonfinite
        self._context = context
        self._stages = stages
        self._seen = {stage.index: _Seen() for stage in stages}
        self._offset = 0
        self._step = context.done
        self._is_lockstep = True
        for stage in stages if self._policy != "ignore" else ():
            stage.watch.begin()

    def losses(self, update: Update) -> None:
        """Checks the losses of all stages since the last call.

        Raises:
            NonFiniteError: with on_nonfinite=stop, a loss is NaN or infinite.
        """
        self._at(update)
        self._report(self._bad_losses())

    def state(self, update: Update) -> None:
        """Checks the losses, and everything that a checkpoint of `update.saved` contains.

        Raises:
            NonFiniteError: with on_nonfinite=stop, a value is NaN or infinite.
        """
        self._at(update)
        self._report([*self._bad_losses(), *self._bad_states(update.saved)])

    def tests(self, event: Evaluation, losses: Mapping[int, float]) -> None:
        """Checks the results of an evaluation.

        Args:
            losses: stage -> summed test loss.

        Raises:
            NonFiniteError: with on_nonfinite=stop, a loss is NaN or infinite.
        """
        self._step = event.step
        bad = {j: loss for j, loss in losses.items() if not math.isfinite(loss)}
        # The cause may be a training loss that is not yet checked.
        findings = self._bad_losses() if bad else []
        for j, loss in bad.items():
            text = f"the test loss is {loss} in the evaluation of epoch {event.epoch}"
            findings.append(Finding(j, event.step, TEST, text))
        self._report(findings)

    def end(self) -> None:
        """Checks the remaining losses and the final weights.

        Raises:
            NonFiniteError: with on_nonfinite=stop, a value is NaN or infinite.
        """
        self._report([*self._bad_losses(), *self._bad_states(self._stages)])
        for j, seen in self._seen.items():
            if seen.bad and self._policy == "warn":
                steps = len(seen.bad)
                logger.warning("on_nonfinite: stage %d: %d steps without a finite loss", j, steps)

    def _at(self, update: Update) -> None:
        """Notes how to convert steps of the learning rate schedule to steps of the run."""
        self._offset = update.step - update.schedule_step
        self._step = update.step
        self._is_lockstep = update.is_lockstep

    def _bad_losses(self) -> list[Finding]:
        """The first bad loss of each stage since the last call."""
        if self._policy == "ignore":
            for stage in self._stages:
                stage.watch.history.clear()
            return []
        return [one for stage in self._stages if (one := self._bad_loss(stage)) is not None]

    def _bad_loss(self, stage: Stage) -> Finding | None:
        seen, first = self._seen[stage.index], None
        for own_step, loss in stage.watch.history.take():
            step = own_step + self._offset
            if math.isfinite(loss):
                seen.last = (step, loss)
                continue
            if first is None:
                text = f"the loss is {loss}{self._story(stage, own_step)}"
                first = Finding(stage.index, step, LOSS, text)
            seen.bad.add(step)
        return first

    def _bad_states(self, stages: Iterable[Stage]) -> list[Finding]:
        if self._policy == "ignore":
            return []
        findings = []
        for stage in stages:
            name = stage.watch.first_nonfinite(stage.scaler)
            if name is not None:
                own_step = max(1, self._step - self._offset)
                text = f"{name} is NaN or infinite{self._story(stage, own_step)}"
                findings.append(Finding(stage.index, self._step, STATE, text))
        return findings

    def _story(self, stage: Stage, own_step: int) -> str:
        """Learning rate, and the last finite loss."""
        rate = f"learning rate {stage.learning_rate(own_step):g}"
        if not stage.module.is_exit:
            return f" ({rate})"
        last = self._seen[stage.index].last
        loss = "none" if last is None else f"{last[1]:g} at step {last[0]}"
        return f" ({rate}, last finite loss: {loss})"

    def _report(self, findings: Sequence[Finding]) -> None:
        """Raises or warns."""
        if not findings or self._policy == "ignore":
            return
        if self._policy == "warn":
            for finding in sorted(findings, key=self._rank):
                seen = self._seen[finding.stage]
                if not seen.is_told:
                    seen.is_told = True
                    logger.warning("%s", finding.describe())
            return
        first = min(findings, key=self._rank)
        cause = self._cause(first)
        if cause != first:
            raise NonFinitePeerError(f"{first.describe()}. The cause: {cause.describe()}")
        below = self._bad_inputs(first)
        if below is not None:
            raise NonFinitePeerError(f"{first.describe()}. The cause: {below}")
        stage = self._stages[[one.index for one in self._stages].index(first.stage)]
        inputs = "" if stage.watch.has_finite_inputs() else " The images are not finite."
        raise NonFiniteError(f"{first.describe()}.{inputs} {ADVICE}")

    def _rank(self, finding: Finding) -> tuple[int, ...]:
        """Sorts the cause before its consequences.

        Stages that learn in lockstep have comparable steps. In asynchronous learning, the lowest
        stage is the cause, because no data flows back.
        """
        if self._is_lockstep:
            return finding.step, finding.kind, finding.stage
        return finding.stage, finding.step, finding.kind

    def _cause(self, own: Finding) -> Finding:
        """The first finding of all processes that report within `AGREE_S`."""
        store, topology = self._context.group.store, self._context.topology
        keys = [f"nonfinite/{rank}" for rank in range(topology.layout.world_size)]
        store.set(keys[topology.rank], json.dumps(asdict(own)))
        deadline = time.monotonic() + AGREE_S
        while not store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.05)
        found = [Finding(**json.loads(store.get(key))) for key in keys if store.check([key])]
        return min(found, key=self._rank)

    def _bad_inputs(self, finding: Finding) -> str | None:
        """The stage below, if this process received values that are not finite from it.

        The stage below may be slow to notice.
        """
        first = self._stages[0]
        is_first_below = self._context.topology.is_first or self._context.method.flows_back
        if is_first_below or finding.stage != first.index or first.watch.has_finite_inputs():
            return None
        return f"the output of stage {first.index - 1} is not finite"
