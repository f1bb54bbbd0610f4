"""A stage: segments, head, local loss and optimizer. It knows nothing of processes.

Takes a batch, hands its output on, learns (the paper's Algorithm 1):

    x_{j+1} = f_j(x_j; theta_j)         forward
    hand on x_{j+1}, detached            before anything else
    loss_j = CE(head_j(x_{j+1}), y)      local loss
    one optimizer step on (theta_j, head_j)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dglpipe.config import StageConfig
from dglpipe.monitoring.meters import ExitMeter, Totals
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.lr_schedule import rate_factor
from dglpipe.pipeline.optim import build_optimizer
from dglpipe.seeds import Seeds

Emit = Callable[[Tensor], None]
Loss = Callable[[Tensor, Tensor], Tensor]


class StageModule(nn.Module):
    """Segments and head as one module, so that replicas can average their gradients.

    Args:
        segments: (B, ...) -> features; of the last stage: -> logits.
        head: features -> logits (B, N); None at the last stage.
        is_exit: whether logits come out: False below the last stage of backprop, which has
            no heads.
    """

    def __init__(self, segments: nn.Module, head: nn.Module | None, is_exit: bool = True) -> None:
        super().__init__()
        self.segments = segments
        self.head = head
        self.is_exit = is_exit

    def forward(self, batch: Tensor, emit: Emit | None) -> Tensor:
        """Logits of `batch`; the features go to `emit` as soon as they are there."""
        features: Tensor = self.segments(batch)
        if emit is not None:
            emit(features)
        logits: Tensor = features if self.head is None else self.head(features)
        return logits


@dataclass(frozen=True, slots=True)
class RunLength:
    """What a schedule needs to know."""

    steps: int
    steps_per_epoch: int


def admit(batch: Tensor, precision: str) -> Tensor:
    """`batch` as a stage of `precision` takes it: full precision has no autocast that would
    convert what a stage of half precision handed on."""
    return batch.float() if precision == "fp32" else batch


def _unchanged(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True, slots=True)
class Copies:
    """The data-parallel copies of a stage."""

    replica: int = 0
    """r, for the random state: replicas drop different units."""
    count: int = 1
    wrap: Callable[[nn.Module], nn.Module] = _unchanged
    """Makes a learner average its gradients over the copies."""


class Stage:
    """One stage on one device.

    Args:
        index: j, from 0.
        settings: optimizer, schedule, head and precision of this stage.
        loss: (logits (B, N), labels (B,)) -> mean loss.
        copies: what makes the learner average its gradients over its replicas.
    """

    def __init__(
        self,
        index: int,
        learner: StageModule,
        settings: StageConfig,
        loss: Loss,
        device: Device,
        length: RunLength,
        seed: int,
        copies: Copies | None = None,
    ) -> None:
        self.index = index
        self.settings = settings
        self.learner = learner.to(device.torch_device).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(settings.optimizer, self.learner.parameters())
        self.scaler = device.scaler(settings.precision.name)
        self._loss = loss
        self._device = device
        self._length = length
        self._copies = copies or Copies()
        self._seeds = Seeds(seed, "step", index, self._copies.replica)
        self._parameters = list(self.learner.parameters())
        # Without copies the learner has no hooks, and the way around them is the shorter one.
        wrapped = self._copies.wrap(self.learner)
        self._forward = self.learner.forward if wrapped is self.learner else wrapped
        self._counter, self._tested = ExitMeter(), ExitMeter()
        self.mark: Callable[[str], None] | None = None
        """Is told what part of a step has just ended, if somebody wants to know."""

    def learning_rate(self, step: int) -> float:
        """The rate of `step`, counted from 1."""
        factor = rate_factor(
            self.settings.schedule, step, self._length.steps, self._length.steps_per_epoch
        )
        return self.settings.optimizer.lr * factor

    def learn(
        self, batch: Tensor, labels: Tensor, step: int, emit: Emit | None, total: int | None = None
    ) -> None:
        """One step on `batch` (B, ...) and `labels` (B,).

        Args:
            step: from 1; determines random state and learning rate.
            emit: takes the features, computed with the weights before the step.
            total: rows of the batch over all replicas; None: this one has them all.
        """
        self.seed(step)
        batch = admit(batch, self.settings.precision.name)
        # The mean over all replicas' rows, although DDP averages replica by replica.
        share = 1.0 if total is None else len(labels) * self._copies.count / total
        # Nobody keeps the loss, so its graph is freed before the optimizer works.
        self._backward(self._local_loss(batch, labels, emit), share)
        if self.mark is not None:
            self.mark("backward")
        self.update(step)

    def _local_loss(self, batch: Tensor, labels: Tensor, emit: Emit | None) -> Tensor:
        with self._device.autocast(self.settings.precision.name):
            logits: Tensor = self._forward(batch, emit)
            loss = self.loss(logits, labels)
        if self.mark is not None:
            self.mark("forward" if emit is None else "head")
        return loss

    def count_rows(self, rows: int) -> None:
        """Notes rows that went through a stage without an exit."""
        self._counter.add_rows(rows)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, N) and labels (B,), which are counted."""
        loss = self._loss(logits, labels)
        self._counter.add(loss, logits, labels)
        return loss

    def test_loss(self, logits: Tensor, labels: Tensor) -> None:
        """Counts the loss of a test batch."""
        self._tested.add(self._loss(logits, labels), logits, labels)

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
        """Of the gradients that are there."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=True) ** 2

    def update(self, step: int, norm: Tensor | None = None) -> None:
        """Steps the optimizer with the gradients that are there.

        Args:
            step: from 1; determines the learning rate.
            norm: of the gradient that this one is a part of, for clipping; None: its own.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        clip = self.settings.optimizer.clip
        if self.scaler is not None and clip is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            whole = self.squared_norm().sqrt() if norm is None else norm
            nn.utils.clip_grads_with_norm_(self._parameters, clip, whole, foreach=True)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batch: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features and softmax (B, N) of `batch`, whose loss and hits are counted.

        Call `eval_mode()` before; nothing of the training state changes.
        """
        features: Tensor | None = None

        def keep(output: Tensor) -> None:
            nonlocal features
            features = output

        batch = admit(batch, self.settings.precision.name)
        with torch.no_grad(), self._device.autocast(self.settings.precision.name):
            logits = self.learner(batch, keep)
            self.test_loss(logits, labels)
        assert features is not None
        return features, torch.softmax(logits.float(), dim=1)

    def infer(self, batch: Tensor) -> Tensor:
        """Features of `batch`, from which nothing is learnt."""
        batch = admit(batch, self.settings.precision.name)
        with torch.no_grad(), self._device.autocast(self.settings.precision.name):
            features: Tensor = self.learner.segments(batch)
        return features

    def eval_mode(self, on: bool) -> None:
        """Switches batch norm and dropout to testing or back to training."""
        self.learner.train(not on)

    def totals(self) -> Totals:
        """Loss and hits of training since the last call; waits for the device."""
        return self._counter.take()

    def test_totals(self) -> Totals:
        """The same of testing."""
        return self._tested.take()
