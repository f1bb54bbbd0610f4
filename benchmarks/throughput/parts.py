"""Parts of a run, measured in a process of their own: one stage, or a plain loop.

    python benchmarks/throughput/parts.py stage 1 OVERRIDES...   stage 1 with its head, no link
    python benchmarks/throughput/parts.py loop OVERRIDES...      all stages, without the trainer
    python benchmarks/throughput/parts.py times OVERRIDES...     seconds of segments and heads

A stage of `method=backprop` computes forward and backward in m micro-batches from a given gradient
of its output, and computes the gradient of its input. With PARTS_FOLDER and PARTS_COUNT in the
environment, this number of processes starts the measured steps together; PARTS_INDEX numbers the
processes, and their GPUs.

Prints samples a second after the warm-up steps; `times` prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import BackpropConfig, Config
from dglpipe.data import open_data
from dglpipe.host import keep_freed_memory
from dglpipe.methods import build_run_method
from dglpipe.partition.auto_split import measure_times
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.device import Device, choose_backend, select
from dglpipe.pipeline.optim import build_optimizer
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.pipeline.stage_module import StageModule, cast_input

WARM_UP = 5
"""Steps that are not measured."""


def main() -> None:
    what, *words = sys.argv[1:]
    j = int(words.pop(0)) if what == "stage" else 0
    config = compose(parse_arguments(words))
    keep_freed_memory()  # as `dglpipe train` does
    device = select_device(config)
    device.prepare(config.pipeline.threads or 1, config.deterministic)
    source = open_data(config.data, config.seed)
    method = build_run_method(config, config.pipeline.stages or 1, source.info)
    if what == "times":
        rows, threads = config.batch_size, config.pipeline.threads or 1
        (times,) = measure_times(config, method, source.info, device, threads, rows, 1)
        sys.stdout.write(json.dumps(asdict(times)) + "\n")
        return
    stages = config.pipeline.stages or 2
    network = build_staged_network(config, method, source.info, stages)
    if what == "loop":
        step = loop_step(config, network, device)
    elif method.flows_back:
        step = backprop_step(config, network, j, device)
    else:
        step = stage_step(config, network, j, device)
    sys.stdout.write(f"{rate(step, config, device):.3f}\n")


def select_device(config: Config) -> Device:
    """The device that `dglpipe train` would give the process."""
    backend = choose_backend(config.pipeline.backend, int(os.environ.get("PARTS_COUNT", "1")))
    return select(backend, int(os.environ.get("PARTS_INDEX", "0")))


def rate(step: Callable[[int], None], config: Config, device: Device) -> float:
    """Samples a second after the warm-up steps."""
    steps = config.max_steps or 20
    for number in range(1, WARM_UP + 1):
        step(number)
    wait_for(device)
    wait_for_others()
    start = time.perf_counter()
    for number in range(WARM_UP + 1, steps + 1):
        step(number)
    wait_for(device)
    return (steps - WARM_UP) * config.batch_size / (time.perf_counter() - start)


def wait_for(device: Device) -> None:
    if device.is_cuda:
        torch.accelerator.synchronize(device.torch_device)


def wait_for_others() -> None:
    """A barrier of PARTS_COUNT processes."""
    folder = os.environ.get("PARTS_FOLDER")
    if folder is None:
        return
    (Path(folder) / str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < int(os.environ["PARTS_COUNT"]):
        time.sleep(0.001)


def batch_of(
    config: Config, shape: tuple[int, ...], dtype: torch.dtype, device: Device
) -> tuple[Tensor, Tensor]:
    """Random rows in the memory format of a link, and labels."""
    batch = torch.randn(config.batch_size, *shape).to(dtype).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (config.batch_size,))
    return batch.to(device.torch_device), labels.to(device.torch_device)


def stage_step(
    config: Config, network: StagedNetwork, j: int, device: Device
) -> Callable[[int], None]:
    """A stage of the package, without links and trainer."""
    length = RunLength(config.max_steps or 20, 100)
    stage = Stage(j, network.learner(j), config.stage(j), Learning(), device, length, 0)
    dtype = PRECISIONS[config.precision.name].dtype if j else torch.float32
    batch, labels = batch_of(config, network.spec.input_shape(j), dtype, device)
    return lambda number: stage.learn(batch, labels, number, None)


def backprop_step(
    config: Config, network: StagedNetwork, j: int, device: Device
) -> Callable[[int], None]:
    """Stage `j` of a backprop pipeline, without links and schedule."""
    method = config.method
    assert isinstance(method, BackpropConfig)
    learner = stage_module(device, network, j)
    optimizer = build_optimizer(config.stage(j).optimizer, learner)
    precision = config.precision.name
    dtype = PRECISIONS[precision].dtype if j else torch.float32
    images, _ = batch_of(config, network.spec.input_shape(j), dtype, device)
    parts = [one.detach().requires_grad_(j > 0) for one in images.chunk(method.microbatches)]
    gradients: list[Tensor] = []

    def step(_: int) -> None:
        for at, part in enumerate(parts):
            with device.autocast(precision):
                output = learner.segments(cast_input(part, precision))
            if len(gradients) == at:
                gradients.append(torch.randn_like(output) / len(parts))
            output.backward(gradients[at])
            part.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stage_module(device: Device, network: StagedNetwork, j: int) -> StageModule:
    """Stage `j` on its device and in the memory format of `Stage`."""
    learner = network.learner(j).to(device.torch_device)
    return learner.to(memory_format=torch.channels_last)


def loop_step(config: Config, network: StagedNetwork, device: Device) -> Callable[[int], None]:
    """Algorithm 1 in a plain loop, with the same modules and optimizer."""
    count = network.spec.stages
    learners = [stage_module(device, network, j) for j in range(count)]
    optimizers = [build_optimizer(config.stage(j).optimizer, learners[j]) for j in range(count)]
    loss_of = nn.CrossEntropyLoss()
    low = config.precision.name == "bf16"
    images, labels = batch_of(config, network.spec.input_shape(0), torch.float32, device)

    def step(_: int) -> None:
        batch = images
        for learner, optimizer in zip(learners, optimizers, strict=True):
            with torch.autocast(device.torch_device.type, torch.bfloat16, enabled=low):
                features = learner.segments(batch)
                logits = learner.logits(features)
                loss = loss_of(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            batch = learner.output(features.detach()).to(PRECISIONS[config.precision.name].dtype)

    return step


if __name__ == "__main__":
    main()
