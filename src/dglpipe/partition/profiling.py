"""Measures the seconds per step of segments and auxiliary modules."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dglpipe.config import StageConfig
from dglpipe.partition.flops import AuxiliaryAt
from dglpipe.partition.fx.signature import module_signature
from dglpipe.partition.segments import TracedNetwork
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.optim import build_optimizer

ROUNDS = 5
ENOUGH_S = 30.0
"""Seconds after which no further round of measurements starts."""

NO_CUT = "no cut"
"""Key in place of the time of a cut whose auxiliary modules cannot be built."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per step, with the field names of `SegmentCosts`."""

    segments: tuple[float, ...]
    input_gradients: tuple[float, ...]
    heads: tuple[float, ...]


def measure(
    traced: TracedNetwork,
    shape: Sequence[int],
    auxiliary_at: AuxiliaryAt,
    settings: StageConfig,
    device: Device,
    rows: int,
) -> Times:
    """Measures forward, backward and optimizer step of every segment, with and without the
    gradient of its input, and of the auxiliary modules of every cut. The learning rate is 0.

    Every step has a constant overhead: starting backward, the optimizer, the timer. Each module is
    measured in a separate step, but a stage has this overhead once. The overhead is therefore
    subtracted from all segments except the last. It is not subtracted from the auxiliary modules,
    because every stage except the last has auxiliary modules.

    Modules that do the same computation are measured once. The result is the minimum over several
    rounds, since other load on the machine can only lengthen a step.

    Args:
        traced: the network with weights, which move to `device`.
        shape: shape of one image.
        auxiliary_at: the auxiliary modules of a cut, with weights.
        settings: optimizer and precision.
        rows: rows per step on one replica.
    """
    place = device.torch_device
    traced.network.to(place).to(memory_format=torch.channels_last)
    batch = torch.randn(rows, *shape, device=place).to(memory_format=torch.channels_last)
    before_pools = batch
    tasks: dict[str, _Task] = {}

    def task(module: nn.Module, signature: str, batch: Tensor, gradient: bool) -> str:
        key = f"{signature} {tuple(batch.shape)} {gradient}"
        if key not in tasks:
            tasks[key] = _Task(module, batch, gradient, settings, device)
        return key

    whole, own = [], []
    heads: list[list[str]] = []
    for at, signature in enumerate(traced.signatures):
        piece = traced.piece(at)
        if at:
            found = auxiliary_at(at)
            heads.append([NO_CUT] if found is None else [])
            features = before_pools if found is not None and found.is_before_pools else batch
            for module in found.modules if found is not None else ():
                module.to(place).to(memory_format=torch.channels_last)
                heads[-1].append(task(module, module_signature(module), features, True))
        whole.append(task(piece, signature, batch, True))
        own.append(task(piece, signature, batch, False))
        body, pools = traced.piece_without_pools(at) or (piece, nn.Identity())
        with torch.no_grad(), device.autocast(settings.precision.name):
            before_pools = body(batch)
            batch = pools(before_pools)
    overhead = task(_Scale().to(place), "overhead", torch.ones(1, 1, device=place), True)
    seconds = {NO_CUT: math.inf, **_best_of_rounds(tasks)}
    segments = [max(0.0, seconds[key] - seconds[overhead]) for key in whole]
    segments[-1] = seconds[whole[-1]]
    return Times(
        segments=tuple(segments),
        input_gradients=tuple(
            max(0.0, seconds[a] - seconds[b]) for a, b in zip(whole, own, strict=True)
        ),
        heads=tuple(sum(seconds[key] for key in keys) for keys in heads),
    )


class _Scale(nn.Module):
    """A module with one weight, to measure the overhead of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Tensor) -> Tensor:
        return batch * self.weight


class _Task:
    """One step of a module on a batch."""

    def __init__(
        self,
        module: nn.Module,
        batch: Tensor,
        gradient: bool,
        settings: StageConfig,
        device: Device,
    ) -> None:
        self._module = module
        self._batch = batch.detach().requires_grad_(gradient and batch.is_floating_point())
        self._precision = settings.precision.name
        self._device = device
        self._optimizer = None
        if next(module.parameters(), None) is not None:
            self._optimizer = build_optimizer(settings.optimizer, module)
            for group in self._optimizer.param_groups:
                group["lr"] = 0.0

    def seconds(self) -> float:
        start = time.perf_counter()
        with self._device.autocast(self._precision):
            output = self._module(self._batch)
        if output.requires_grad:
            output.backward(torch.ones_like(output))
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        output.flatten()[0].item()  # synchronizes with the device
        spent = time.perf_counter() - start
        self._batch.grad = None
        return spent


def _best_of_rounds(tasks: dict[str, _Task]) -> dict[str, float]:
    for one in tasks.values():
        one.seconds()  # warm-up: the first call allocates and chooses algorithms
    start = time.monotonic()
    best = {key: one.seconds() for key, one in tasks.items()}
    for _ in range(ROUNDS - 1):
        if time.monotonic() - start > ENOUGH_S:
            break
        best = {key: min(best[key], one.seconds()) for key, one in tasks.items()}
    return best


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context that sets the number of CPU threads, as in the processes of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
