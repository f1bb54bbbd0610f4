"""What the loop itself costs a step: everything but forward, backward, optimizer, transfer.

    python benchmarks/loop_cost/loop_cost.py --output FILE.json

Trains a tiny network on two processes and measures, step by step, the whole step of the main
thread and, inside it, the calls that are the work: segments and head, loss, backward,
optimizer, and the operations of the link's transport. The rest is the loop: the plan, the
batch order, views of buffers, random state, learning rate, counting, the timer, logging.
Loading (indexing and scaling of images) is shown by itself. Prints the median over the steps,
which a neighbour on the machine moves less than the mean, and quartiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import torch.multiprocessing as mp

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.data import open_data
from dglpipe.data.in_memory import InMemory
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.p2p import PairTransport, PeerWork
from dglpipe.pipeline.process_group import ProcessGroup, rendezvous
from dglpipe.pipeline.stage import Stage, StageModule
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.trainer import Trainer
from dglpipe.runtime.worker import open_trainer

sys.path.append(str(Path(__file__).parents[1]))

import record

OVERRIDES = [
    "model=cnn6",
    "model.width=1",
    "head=linear",
    "data=synthetic",
    "data.image_size=8",
    "data.samples=64000",
    "batch_size=32",
    "evaluate.every=0",
    "epochs=1",
    "pipeline.stages=2",
    "pipeline.processes=2",
    "pipeline.split=even",
    "pipeline.threads=1",
]
WARM = 200


class Stopwatch:
    """Time by part and step; nested parts count for the outer one.

    What a timed call costs more than the call itself is measured in every step, on a call of
    nothing, and taken off the loop's share.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls = 0
        self._inside = False
        self._mark = time.perf_counter()
        self._nothing = self._timed(lambda: None, "nothing")

    def end_step(self) -> None:
        """Whatever of the step no part covers is the loop's."""
        now = time.perf_counter()
        parts, calls = dict(self._seconds), self._calls
        self._nothing()
        timing = calls * (time.perf_counter() - now)
        parts["timing"] = timing
        parts["loop"] = now - self._mark - sum(parts.values())
        self.steps.append(parts)
        self._seconds.clear()
        self._calls = 0
        self._mark = time.perf_counter()

    def around(self, owner: Any, name: str, part: str) -> None:
        """Times every call of `owner.name`."""
        setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, inner: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return inner(*args, **kwargs)
            self._inside = True
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            del args, kwargs  # what only they hold is freed here: a graph behind its backward
            self._seconds[part] += time.perf_counter() - start
            self._calls += 1
            self._inside = False
            return result

        return timed


def watch(stopwatch: Stopwatch, trainer: Trainer) -> None:
    """Times what is not the loop."""
    for stage in trainer.runner.stages:
        own: StageModule = stage.module
        for module in (own.segments, *own.auxiliary.values()):
            stopwatch.around(type(module), "__call__", "forward")
        stopwatch.around(stage, "_loss", "forward")
        stopwatch.around(stage, "_backward", "backward")
        stopwatch.around(stage.optimizer, "step", "optimizer")
        stopwatch.around(stage.optimizer, "zero_grad", "optimizer")


def watch_classes(stopwatch: Stopwatch) -> None:
    """The same for what is looked up in a class; before a worker takes hold of it."""
    stopwatch.around(InMemory, "_answer", "loading")
    stopwatch.around(PeerWork, "wait", "transfer")
    for operation in ("copy", "fill", "isend", "irecv"):
        stopwatch.around(PairTransport, operation, "transfer")


def run(rank: int, config: Config, path: str, answers: Any) -> None:
    layout = Layout(stages=2, processes=2, replicas=1, threads=1)
    device = Device(torch.device("cpu"), "gloo")
    device.prepare(1, False)
    store = rendezvous(60, f"file://{path}", rank, 2)
    group = ProcessGroup.connect(layout.at(rank), device, store, 60)
    stopwatch = Stopwatch()
    watch_classes(stopwatch)
    source = open_data(config.data, 0)
    trainer = open_trainer(make_plan(config, layout, source=source), source, device, group)
    watch(stopwatch, trainer)
    learn = Stage.learn

    def marked(stage: Stage, batch: Any, labels: Any, step: int, *rest: Any) -> None:
        learn(stage, batch, labels, step, *rest)
        stopwatch.end_step()

    Stage.learn = marked  # type: ignore[method-assign, assignment]
    trainer.run()
    group.close()
    answers.put(summarise(rank, stopwatch.steps[WARM:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="JSON file of the results")
    arguments = parser.parse_args()
    record.prepare(arguments.output)
    config = compose(parse_arguments(OVERRIDES))
    with tempfile.TemporaryDirectory() as folder:
        answers: Any = mp.get_context("spawn").SimpleQueue()
        mp.spawn(run, (config, f"{folder}/store", answers), nprocs=2)
        rows = sorted((answers.get() for _ in range(2)), key=lambda row: row["rank"])
    for row in rows:
        tell(row)
    record.store(arguments.output, rows=rows)


def summarise(rank: int, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Quartiles in milliseconds a step."""
    parts = sorted({name for step in steps for name in step})
    row = {
        name: [value * 1e3 for value in quantiles([step.get(name, 0.0) for step in steps])]
        for name in parts
    }
    return {"rank": rank, "steps": len(steps), "milliseconds_a_step": row}


def tell(row: dict[str, Any]) -> None:
    sys.stdout.write(f"rank {row['rank']}, {row['steps']} steps, ms a step: median (quartiles)\n")
    for name, (low, middle, high) in row["milliseconds_a_step"].items():
        sys.stdout.write(f"  {name:10} {middle:.3f} ({low:.3f} .. {high:.3f})\n")


if __name__ == "__main__":
    main()
