"""One process of a chain on the accelerator of `ghost.py`: real Chain, Stage and link.

It runs stages 1 and 2 of 4, so that it receives, hands on inside the process, and sends.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dglpipe.data import open_data
from dglpipe.data.batch_schedule import Phase, build_batch_schedule
from dglpipe.methods.dgl import Chain
from dglpipe.models.losses import build_loss
from dglpipe.monitoring.timers import Timer
from dglpipe.partition.pipeline_spec import build_spec
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival, LinkFeed
from dglpipe.pipeline.link import Receiver, Sender
from dglpipe.pipeline.p2p import PairTransport
from dglpipe.pipeline.stage import Loss, RunLength, Stage
from dglpipe.pipeline.transport import Work
from harness.configs import make_config
from unit.pipeline.ghost import ghost_mode, to_ghost

STAGES, OWN = 4, (1, 2)


class NoPeer(PairTransport):
    """The operations of a link on its own device, without a peer."""

    def __init__(self) -> None:
        self.messages: list[Tensor] = []

    def isend(self, tensor: Tensor) -> Work:
        self.messages.append(tensor)
        return _Done()

    def irecv(self, tensor: Tensor) -> Work:
        return self.isend(tensor)


class _Done:
    def wait(self) -> None:
        pass


class _ItemInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * gradient.sum().item()


def _on_logits(spoil: Callable[[Tensor, Tensor], object]) -> Callable[[Loss], Loss]:
    """A loss that also applies `spoil` to logits and labels."""

    def wrap(loss: Loss) -> Loss:
        def spoilt(logits: Tensor, labels: Tensor) -> Tensor:
            spoil(logits, labels)
            return loss(logits, labels)

        return spoilt

    return wrap


FAULTY_LOSSES: dict[str, Callable[[Loss], Loss]] = {
    "loss.item()": lambda loss: lambda x, y: loss(x, y) + loss(x, y).item(),
    "if loss > 0": _on_logits(lambda x, y: bool(x.sum() > 0)),
    "labels.tolist()": _on_logits(lambda x, y: y.tolist()),
    "size from values": _on_logits(lambda x, y: x[y > 0]),
    "blocking .cpu()": _on_logits(lambda x, y: y.cpu()),
    "blocking .to()": _on_logits(lambda x, y: torch.zeros(3).to(x.device)),
    "blocking copy_": _on_logits(lambda x, y: torch.empty_like(x).copy_(torch.zeros(x.shape))),
    "labels on the CPU": lambda loss: lambda x, y: loss(x, torch.zeros_like(y, device="cpu")),
    "item() in backward": lambda loss: lambda x, y: loss(_ItemInBackward.apply(x), y),
}


class GhostProcess:
    """Built on the CPU; `move` and `run` are for inside `ghost_mode`.

    Args:
        fault: a key of FAULTY_LOSSES, or one that `run` knows.
    """

    def __init__(self, overrides: tuple[str, ...], fault: str) -> None:
        self.config = make_config(*overrides, f"pipeline.stages={STAGES}")
        source = open_data(self.config.data, self.config.seed, 1)
        self.plan = build_batch_schedule(self.config, source)
        first, _, _, uneven, test = islice(self.plan.items(), 5)
        self.items = [first, uneven, test]
        self.spec = build_spec(self.config, source.description, STAGES)
        self._learners = [self.spec.learner(j) for j in OWN]
        self._fault = fault

    def move(self, where: torch.device, foreach: bool) -> None:
        """Puts the stages and the ends of both links on the device.

        Args:
            foreach: whether SGD is torch's foreach variant and not the fused one.
        """
        self.stages = [self._stage(j, where, foreach) for j in range(len(OWN))]
        self.below, self.above = NoPeer(), NoPeer()
        first, last = OWN[0] - 1, OWN[-1]
        sender = Sender(self.above, self.spec.layouts(last, self.plan), where)
        fields = dict(enumerate(self.spec.fields))
        self.chain = Chain(self.stages, fields, sender, Timer(), STAGES)
        layouts, name = self.spec.layouts(first, self.plan), f"link {first} -> {OWN[0]}"
        self.feed = LinkFeed(Receiver(self.below, layouts, iter(self.items), 2, where, name))

    def _stage(self, at: int, where: torch.device, foreach: bool) -> Stage:
        config, learner = self.config, self._learners[at]
        to_ghost(learner, where)
        loss = build_loss(config.method.loss, config.label_smoothing)
        loss = FAULTY_LOSSES.get(self._fault, lambda right: right)(loss)
        length = RunLength(self.plan.steps_per_round, self.plan.steps_per_epoch)
        device, settings = Device(where, "gloo"), config.stage(OWN[at])
        stage = Stage(OWN[at], learner, settings, loss, device, length, config.seed)
        if foreach:
            stage.optimizer = torch.optim.SGD(learner.parameters(), momentum=0.9, foreach=True)
        return stage

    def run(self) -> None:
        """Two steps, the second on an uneven batch, and a test batch."""
        for item in self.items:
            arrival = self.feed.take()
            if self._fault == "arrival on the CPU":
                labels = torch.zeros(item.rows, dtype=torch.int64)
                arrival = Arrival(item, arrival.batch, labels, None)
            if item.phase is Phase.TRAIN:
                self.chain.train(arrival)
            else:
                self.chain.eval_mode(True)
                self.chain.evaluate(arrival)
        if self._fault == "totals":
            self.stages[0].totals()
        if self._fault == "header check":
            self.feed.check()


def run_steps(
    overrides: tuple[str, ...] = (), fault: str = "", foreach: bool = False
) -> tuple[str, str]:
    """In a process that knows the device: `("ok", what was sent)`, or an error's class and
    text (the errors of fake tensors cannot be pickled)."""
    torch.set_num_threads(1)
    try:
        process = GhostProcess(overrides, fault)
        with ghost_mode() as where:
            process.move(where, foreach)
            process.run()
        sent = [f"{tensor.numel()} on {tensor.device.type}" for tensor in process.above.messages]
        return "ok", ", ".join(sent)
    except Exception as error:
        return type(error).__name__, str(error)
