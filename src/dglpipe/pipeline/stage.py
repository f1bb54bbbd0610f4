"""A stage: module, local loss and optimizer; independent of processes.

One step of stage j on a batch (Algorithm 1 of Belilovsky et al., ICML 2020):

    x_{j+1} = f_j(x_j; theta_j)         forward
    emit x_{j+1}, detached               before anything else
    loss_j = CE(head_j(x_{j+1}), y)      local loss
    one optimizer step on (theta_j, head_j)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dglpipe.config import StageConfig
from dglpipe.models.losses import Loss, check_logits, check_loss
from dglpipe.monitoring.meters import ExitMeter, Totals
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.finite import StageWatch
from dglpipe.pipeline.lookahead import build_lookahead
from dglpipe.pipeline.lr_schedule import rate_factor
from dglpipe.pipeline.optim import LR_FACTOR, build_optimizer, start_momentum
from dglpipe.pipeline.probe import StageProbe
from dglpipe.pipeline.stage_module import Emit, LocalStep, Objective, StageModule, cast_input
from dglpipe.seeds import Seeds


@dataclass(frozen=True, slots=True)
class RunLength:
    """The length of a run, for learning rate schedules.

    Attributes:
        steps: optimizer steps of a stage.
        steps_per_epoch: optimizer steps of an epoch.
    """

    steps: int
    steps_per_epoch: int


def _unchanged(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True, slots=True)
class Copies:
    """The data-parallel copies of a stage.

    Attributes:
        replica: r. Replicas draw different random numbers.
        count: R.
        wrap: makes a module average its gradients over the copies.
    """

    replica: int = 0
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = _unchanged


@dataclass(frozen=True, slots=True)
class Learning:
    """The loss and the local objective of a stage.

    Attributes:
        loss: logits (B, N), labels (B,) -> mean loss. Also the loss of evaluations.
        objective: the local objective; None: the loss.
        classes: N; None: the number of logits is not checked.
        resets: whether the optimizer state is cleared at each drop of the learning rate
            (`method.reset_optimizer`).
    """

    loss: Loss = field(default_factory=nn.CrossEntropyLoss)
    objective: Objective | None = None
    classes: int | None = None
    resets: bool = False


class Stage:
    """One stage on one device.

    Args:
        index: j, from 0.
        module: segments and auxiliary modules. They move to `device`.
        settings: optimizer, schedule and precision of this stage.
        learning: loss and local objective, and resets of the optimizer.
        length: steps of the run, for the learning rate.
        seed: seed of the run.
        copies: the data-parallel copies of the stage; None: one copy.
        probe: measures the convergence; None: nothing is measured.
    """

    def __init__(
        self,
        index: int,
        module: StageModule,
        settings: StageConfig,
        learning: Learning,
        device: Device,
        length: RunLength,
        seed: int,
        copies: Copies | None = None,
        probe: StageProbe | None = None,
    ) -> None:
        self.index = index
        self.settings = settings
        self.module = module.to(device.torch_device).to(memory_format=torch.channels_last)
        self._body = list(self.module.segments.parameters())
        auxiliary = module.auxiliary.values()
        self.optimizer = build_optimizer(settings.optimizer, self.module, auxiliary)
        self.lookahead = build_lookahead(settings.optimizer, self.module, length.steps)
        self._head_warmup = settings.local.head_warmup if auxiliary else 0
        self.scaler = device.scaler(settings.precision.name)
        self._loss = learning.loss
        self._device = device
        self._length = length
        self._copies = copies or Copies()
        self._seeds = Seeds(seed, "step", index, self._copies.replica)
        self._parameters = list(self.module.parameters())
        self._classes = learning.classes
        self._resets = learning.resets
        step = LocalStep(self.module, self._loss, learning.objective, index, self._classes)
        wrapped = self._copies.wrap(step)
        # A module without hooks is called by its forward, which is faster.
        self._forward = step.forward if wrapped is step else wrapped
        self._trained, self._tested = ExitMeter(), ExitMeter()
        self.watch = StageWatch(self.module, self.optimizer)
        """Losses by step, and the search for values that are NaN or infinite."""
        self.probe = probe or StageProbe()
        """Measurements of convergence."""
        self.mark: Callable[[str], None] | None = None
        """Optional callback after each phase of a step, with the name of the phase."""

    def learning_rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 1."""
        factor = rate_factor(
            self.settings.schedule, step, self._length.steps, self._length.steps_per_epoch
        )
        return self.settings.optimizer.lr * factor

    def learn(
        self,
        inputs: Tensor,
        labels: Tensor,
        step: int,
        emit: Emit | None,
        total: int | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Makes one optimizer step on `inputs` (B, ...) and `labels` (B,).

        Args:
            step: from 1; determines random state and learning rate.
            emit: receives the output, computed with the weights before the step.
            total: rows of the batch over all replicas; None: this replica has all rows.
            extras: extra tensors of the message, each (B, ...), for the local objective.
        """
        self.seed(step)
        self.watch.inputs = weakref.ref(inputs)
        inputs = cast_input(inputs, self.settings.precision.name)
        # DDP averages over replicas. The step needs the mean over the rows of all replicas.
        share = 1.0 if total is None else len(labels) * self._copies.count / total
        # Drop the loss so that its graph is freed before optimizer.step().
        self._backward(self._local_loss(inputs, labels, extras or {}, emit), share)
        if self.mark is not None:
            self.mark("backward")
        self.update(step)

    def _local_loss(
        self, inputs: Tensor, labels: Tensor, extras: Mapping[str, Tensor], emit: Emit | None
    ) -> Tensor:
        with self._device.autocast(self.settings.precision.name):
            loss, logits = self._forward(inputs, labels, extras, emit)
            self._trained.add(loss, logits, labels)
        self.watch.history.add(loss)
        if self.mark is not None:
            self.mark("forward" if emit is None else "head")
        return loss

    def count_rows(self, rows: int) -> None:
        """Counts training rows of a stage without an exit."""
        self._trained.add_rows(rows)

    def count_loss(self, loss: Tensor, rows: int) -> None:
        """Counts the mean loss () of `rows` training rows of a stage without an exit."""
        self._trained.add_loss(loss, rows)
        self.watch.history.add(loss)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits (B, N) and labels (B,), counted as a training batch."""
        check_logits(logits, len(labels), self._classes, self.index)
        loss = check_loss(self._loss(logits, labels), self.index)
        self._trained.add(loss, logits, labels)
        self.watch.history.add(loss)
        return loss

    def test_loss(self, logits: Tensor, labels: Tensor) -> None:
        """Counts loss and hits of a test batch."""
        check_logits(logits, len(labels), self._classes, self.index)
        loss = check_loss(self._loss(logits, labels), self.index, learns=False)
        self._tested.add(loss, logits, labels)

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which the stage computes in its precision."""
        return self._device.autocast(self.settings.precision.name)

    def seed(self, step: int) -> None:
        """Sets the random state of `step`, counted from 1."""
        self._device.seed(self._seeds.at(step))

    def _backward(self, loss: Tensor, share: float) -> None:
        if share != 1.0:
            loss = loss * share
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def squared_norm(self) -> Tensor:
        """Squared L2 norm () of the present gradients."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=True) ** 2

    def update(self, step: int, norm: Tensor | None = None) -> None:
        """Steps the optimizer with the present gradients.

        Args:
            step: from 1; determines the learning rate.
            norm: L2 norm of the gradient of all stages together, for clipping;
                None: the norm of this stage's gradient.
        """
        self.watch.history.end_step(step)
        if self.probe.measures(step):
            self._measure_gradient()
        if step <= self._head_warmup:
            for one in self._body:
                one.grad = None
        # A function of the step, so that a resumed run resets its optimizer at the same steps.
        if self._resets and step > 1 and self.learning_rate(step) < self.learning_rate(step - 1):
            self.optimizer.state.clear()
        if self.lookahead is None:
            self.apply(step, norm)
            return
        self.lookahead.begin()
        self.apply(step, norm)
        self.lookahead.after_step(step)

    def _measure_gradient(self) -> None:
        if all(one.grad is None for one in self._parameters):
            return
        norm = self.squared_norm().sqrt()
        if self.scaler is not None:
            norm = norm / self.scaler.scale(torch.ones_like(norm))
        self.probe.add_norm(norm)

    def apply(self, step: int, norm: Tensor | None = None) -> None:
        """As `update`, for a further update within a step. Weights without a gradient stay."""
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group[LR_FACTOR]
        clip = self.settings.optimizer.clip
        if self.scaler is not None and clip is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            whole = self.squared_norm().sqrt() if norm is None else norm
            nn.utils.clip_grads_with_norm_(self._parameters, clip, whole, foreach=True)
        if self.scaler is not None or self._head_warmup:
            start_momentum(self.optimizer)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Output and softmax (B, N) of `inputs`. Counts loss and hits as a test batch.

        Call `eval_mode(True)` before. The training state does not change.
        """
        inputs = cast_input(inputs, self.settings.precision.name)
        with torch.no_grad(), self._device.autocast(self.settings.precision.name):
            features = self.module.features(inputs)
            logits = self.module.logits(features)
            self.test_loss(logits, labels)
            output = self.module.output(features)
        return output, torch.softmax(logits.float(), dim=1)

    def infer(self, inputs: Tensor) -> Tensor:
        """The output for `inputs`, without gradients."""
        inputs = cast_input(inputs, self.settings.precision.name)
        with torch.no_grad(), self._device.autocast(self.settings.precision.name):
            return self.module.output(self.module.features(inputs))

    def eval_mode(self, on: bool) -> None:
        """Switches batch norm and dropout to evaluation or back to training."""
        self.module.train(not on)

    def totals(self) -> Totals:
        """Loss and hits of training since the last call; waits for the device."""
        return self._trained.take()

    def open_totals(self) -> dict[str, Any]:
        """Loss and hits of training since the last `totals`, for a checkpoint."""
        return self._trained.state()

    def restore_totals(self, state: dict[str, Any]) -> None:
        """Continues with a result of `open_totals`."""
        self._trained.restore(state, self._device.torch_device)

    def restore_probe(self, state: dict[str, Any]) -> None:
        """Continues with a result of `StageProbe.state`."""
        self.probe.restore(state, self._device.torch_device)

    def test_totals(self) -> Totals:
        """Loss and hits of testing since the last call; waits for the device."""
        return self._tested.take()
