"""Cost of the training loop: everything but forward, backward, optimizer, transfer and loading.

Trains a tiny network on two processes and measures, step by step, the whole step of the main
thread and the calls inside it that compute: segments and head, loss, backward, optimizer, and the
operations of the link's transport. The rest is the loop: batch schedule, batch order, views of
buffers, random state, learning rate, meters, timer, log. Loading (indexing and scaling of images)
is a part of its own. The results are medians over the steps, which other load on the machine moves
less than means, and quartiles.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import quantiles
from typing import Any

from benchmarks.common import interval, log
from benchmarks.processes import CPU, connect, in_processes
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import Config
from dglpipe.data import open_data
from dglpipe.data.in_memory import InMemory
from dglpipe.pipeline.p2p import PairTransport, PeerWork
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.trainer import Trainer
from dglpipe.runtime.worker import open_trainer

BATCH = 32
PROCESSES = 2
OVERRIDES = [
    *("model=cnn6", "model.width=1", "head=linear", "data=synthetic", "data.image_size=8"),
    *(f"batch_size={BATCH}", "evaluate.every=0", "epochs=1"),
    *(f"pipeline.stages={PROCESSES}", f"pipeline.processes={PROCESSES}"),
    *("pipeline.split=even", "pipeline.threads=1"),
]
WARM_UP = 200
"""Steps that are not measured."""


class Stopwatch:
    """Seconds of each part, step by step; a nested part counts for the outer one.

    The cost of timing a call is measured in every step, on an empty call, and is not counted as
    loop.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls = 0
        self._inside = False
        self._mark = time.perf_counter()
        self._nothing = self._timed(lambda: None, "nothing")

    def end_step(self) -> None:
        """Ends a step. What no part covers is the loop."""
        now = time.perf_counter()
        parts, calls = dict(self._seconds), self._calls
        self._nothing()
        parts["timing"] = calls * (time.perf_counter() - now)
        parts["loop"] = now - self._mark - sum(parts.values())
        self.steps.append(parts)
        self._seconds.clear()
        self._calls = 0
        self._mark = time.perf_counter()

    def time_calls(self, owner: Any, name: str, part: str) -> None:
        """Times every call of `owner.name`."""
        setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, inner: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return inner(*args, **kwargs)
            self._inside = True
            start = time.perf_counter()
            result = inner(*args, **kwargs)
            del args, kwargs  # frees what only they hold, a graph for example, within the part
            self._seconds[part] += time.perf_counter() - start
            self._calls += 1
            self._inside = False
            return result

        return timed


def measure(steps: int) -> dict[str, Any]:
    """A row for each process: quartiles of every part."""
    words = [*OVERRIDES, f"data.samples={BATCH * steps}"]
    config = compose(parse_arguments(words))
    rows = in_processes(run, PROCESSES, config, start_method="spawn")
    for row in rows:
        log(*describe(row))
    return {"rows": rows}


def run(rank: int, folder: str, config: Config) -> dict[str, Any]:
    """One process of the training."""
    layout = Layout(stages=PROCESSES, processes=PROCESSES, replicas=1, threads=1)
    CPU.prepare(1, False)
    group = connect(rank, folder, layout)
    stopwatch = Stopwatch()
    time_classes(stopwatch)
    source = open_data(config.data, 0)
    trainer = open_trainer(make_plan(config, layout, source=source), source, CPU, group)
    time_stages(stopwatch, trainer)
    learn = Stage.learn

    def learn_and_end(*args: Any, **kwargs: Any) -> None:
        learn(*args, **kwargs)
        stopwatch.end_step()

    Stage.learn = learn_and_end  # type: ignore[method-assign]
    trainer.run()
    group.close()
    return summarize(rank, stopwatch.steps[WARM_UP:])


def time_stages(stopwatch: Stopwatch, trainer: Trainer) -> None:
    """Times computing."""
    for stage in trainer.runner.stages:
        own: StageModule = stage.module
        for module in (own.segments, *own.auxiliary.values(), stage._loss):
            stopwatch.time_calls(type(module), "__call__", "forward")
        stopwatch.time_calls(stage, "_backward", "backward")
        stopwatch.time_calls(stage.optimizer, "step", "optimizer")
        stopwatch.time_calls(stage.optimizer, "zero_grad", "optimizer")


def time_classes(stopwatch: Stopwatch) -> None:
    """Times loading and transfers; to be called before the objects exist."""
    stopwatch.time_calls(InMemory, "_answer", "loading")
    stopwatch.time_calls(PeerWork, "wait", "transfer")
    for operation in ("copy", "fill", "isend", "irecv"):
        stopwatch.time_calls(PairTransport, operation, "transfer")


def summarize(rank: int, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Quartiles in milliseconds a step."""
    parts = sorted({name for step in steps for name in step})
    row = {
        name: [value * 1e3 for value in quantiles([step.get(name, 0.0) for step in steps])]
        for name in parts
    }
    return {"rank": rank, "steps": len(steps), "milliseconds_a_step": row}


def describe(row: dict[str, Any]) -> list[str]:
    lines = [f"rank {row['rank']}, {row['steps']} steps, ms a step: median (quartiles)"]
    for name, (low, middle, high) in row["milliseconds_a_step"].items():
        lines.append(f"  {name:10} {interval(middle, low, high, 3)}")
    return lines
