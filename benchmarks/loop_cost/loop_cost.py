"""What the loop itself costs a step: everything but forward, backward, optimizer, transfer.

    python benchmarks/loop_cost/loop_cost.py --output results/NAME.json

Trains a tiny network on two processes and measures, in processor time of the main thread,
the whole loop and, inside it, the calls that are the work: segments and head, loss,
backward, optimizer, and the operations of the link's transport. The rest is the loop: the
plan, the batch order, views of buffers, random state, learning rate, counting, the clock,
logging. Loading (indexing and scaling of images) is shown by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from dglpipe.cli.compose import compose, take_apart
from dglpipe.config import Config
from dglpipe.data import open_data
from dglpipe.data.memory import InMemory
from dglpipe.device import Device
from dglpipe.process_group import LostPeerWork, PairTransport, ProcessGroup, rendezvous
from dglpipe.stage import LocalLearner, Stage
from dglpipe.topology import Layout
from dglpipe.worker import Worker

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
    "pipeline.threads=1",
]
WARM = 200


class Stopwatch:
    """Processor time of this thread, by part; nested parts count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = False

    def around(self, owner: Any, name: str, part: str) -> None:
        """Times every call of `owner.name`."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return inner(*args, **kwargs)
            self._inside = True
            start = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - start
                self._inside = False

        setattr(owner, name, timed)


def watch(stopwatch: Stopwatch, worker: Worker) -> None:
    """Times what is not the loop."""
    for stage in worker.chain.stages:
        learner: LocalLearner = stage.learner
        stopwatch.around(learner.segments, "forward", "forward")
        if learner.head is not None:
            stopwatch.around(learner.head, "forward", "forward")
        stopwatch.around(stage, "_loss", "forward")
        stopwatch.around(stage.optimizer, "step", "optimizer")
        stopwatch.around(stage.optimizer, "zero_grad", "optimizer")


def watch_classes(stopwatch: Stopwatch) -> None:
    """The same for what is looked up in a class; before a worker takes hold of it."""
    stopwatch.around(torch.Tensor, "backward", "backward")
    stopwatch.around(InMemory, "_answer", "loading")
    stopwatch.around(LostPeerWork, "wait", "transfer")
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
    worker = Worker(config, open_data(config.data, 0), device, group)
    watch(stopwatch, worker)
    marks: dict[int, float] = {}
    learn = Stage.learn

    def marked(stage: Stage, batch: Any, labels: Any, step: int, *rest: Any) -> None:
        learn(stage, batch, labels, step, *rest)
        if step in (WARM, worker.plan.steps - 1):
            marks[step] = time.thread_time()
            if step == WARM:
                stopwatch.seconds.clear()
            else:
                answers.put((rank, step - WARM, marks[step] - marks[WARM], stopwatch.seconds))

    Stage.learn = marked  # type: ignore[method-assign, assignment]
    worker.run()
    group.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="JSON file of the results")
    arguments = parser.parse_args()
    config = compose(take_apart(OVERRIDES))
    with tempfile.TemporaryDirectory() as folder:
        answers: Any = mp.get_context("spawn").SimpleQueue()
        mp.spawn(run, (config, f"{folder}/store", answers), nprocs=2)
        rows = [report(*answers.get()) for _ in range(2)]
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=2) + "\n")


def report(rank: int, steps: int, whole: float, parts: dict[str, float]) -> dict[str, Any]:
    """Milliseconds a step."""
    row = {name: seconds / steps * 1e3 for name, seconds in sorted(parts.items())}
    row["loop"] = whole / steps * 1e3 - sum(row.values())
    sys.stdout.write(f"rank {rank}, {steps} steps, ms a step: ")
    sys.stdout.write(", ".join(f"{name} {value:.3f}" for name, value in row.items()) + "\n")
    return {"rank": rank, "steps": steps, "milliseconds_a_step": row}


if __name__ == "__main__":
    main()
