"""One process of a chain on the accelerator of `ghost.py`: real runner, stages and links.

The process runs stages 2 and 3 of 6, so that it receives, passes features between its stages, and
sends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dglpipe.config import PrecisionConfig
from dglpipe.data import open_data
from dglpipe.data.batch_schedule import Phase
from dglpipe.methods import RunContext, build_run_method
from dglpipe.methods.dgl import DglRunner
from dglpipe.models.losses import build_loss
from dglpipe.monitoring.timers import Timer
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import Arrival, LinkInputs
from dglpipe.pipeline.link import Receiver
from dglpipe.pipeline.optim import LR_FACTOR
from dglpipe.pipeline.p2p import PairTransport
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Learning, Loss, RunLength, Stage
from dglpipe.pipeline.topology import Layout
from dglpipe.pipeline.transport import Work
from dglpipe.runtime.plan import make_plan
from harness.configs import build_stages, make_config
from unit.pipeline.ghost import ghost_mode, to_ghost

STAGES, OWN = 6, (2, 3)


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
        fault: a key of FAULTY_LOSSES, or another fault that `run` implements.
    """

    def __init__(self, overrides: tuple[str, ...], fault: str) -> None:
        self.config = make_config(*overrides, f"pipeline.stages={STAGES}")
        self.source = open_data(self.config.data, self.config.seed, 1)
        network = build_stages(self.config, self.source.info, STAGES)
        # fp16 is refused on a CPU: the plan is made in fp32.
        full = replace(self.config, precision=PrecisionConfig())
        plan = make_plan(full, Layout(STAGES, 3, 1, 1), source=self.source)
        method = build_run_method(self.config, STAGES, self.source.info)
        messages = tuple(method.messages(link, network.spec) for link in range(STAGES - 1))
        self.plan = replace(plan, config=self.config, spec=network.spec, messages=messages)
        first, _, _, uneven, test = islice(self.plan.schedule.items(), 5)
        self.items = [first, uneven, test]
        self._modules = [network.learner(j) for j in OWN]
        self._fault = fault

    def move(self, where: torch.device, foreach: bool) -> None:
        """Puts the stages and the ends of both links on the device.

        Args:
            foreach: whether SGD is torch's foreach variant and not the fused one.
        """
        self.stages = [self._stage(j, where, foreach) for j in range(len(OWN))]
        self.below, self.above = NoPeer(), NoPeer()
        group = ProcessGroup.alone(self.plan.layout.at(1))
        group.previous, group.following = self.below, self.above
        method = build_run_method(self.config, STAGES, self.source.info)
        device = Device(where, "gloo")
        parts = (self.plan, method, self.source, device, group, Timer(), self.stages)
        self.runner = DglRunner(RunContext(*parts, done=0, restored={}))
        formats, name = self.plan.formats(OWN[0] - 1), f"link {OWN[0] - 1} -> {OWN[0]}"
        receiver = Receiver(self.below, formats, iter(self.items), 2, where, name)
        self.runner.inputs = LinkInputs(receiver)

    def _stage(self, at: int, where: torch.device, foreach: bool) -> Stage:
        config, module = self.config, self._modules[at]
        to_ghost(module, where)
        loss = build_loss(config.method.loss, config.label_smoothing)
        loss = FAULTY_LOSSES.get(self._fault, lambda right: right)(loss)
        schedule = self.plan.schedule
        length = RunLength(schedule.steps_per_round, schedule.steps_per_epoch)
        device, settings = Device(where, "gloo"), config.stage(OWN[at])
        stage = Stage(OWN[at], module, settings, Learning(loss), device, length, config.seed)
        if foreach:
            group = {"params": module.parameters(), LR_FACTOR: 1.0}
            stage.optimizer = torch.optim.SGD([group], momentum=0.9, foreach=True)
        return stage

    def run(self) -> None:
        """Two steps, the second on an uneven batch, and a test batch."""
        for item in self.items:
            arrival = self.runner.inputs.take()
            if self._fault == "arrival on the CPU":
                labels = torch.zeros(item.rows, dtype=torch.int64)
                arrival = Arrival(item, arrival.batch, labels, None)
            if item.phase is Phase.TRAIN:
                self.runner.train(arrival)
            else:
                self.runner.eval_mode(True)
                self.runner.evaluate(arrival)
        if self._fault == "totals":
            self.stages[0].totals()
        if self._fault == "header check":
            self.runner.check()


def run_steps(
    overrides: tuple[str, ...] = (), fault: str = "", foreach: bool = False
) -> tuple[str, str]:
    """Runs in a process with the device. Returns `("ok", sent messages)`, or class and text of an
    error, because errors of fake tensors cannot be pickled."""
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
