"""The checks of `gpu_check.py`, by name, and how each is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gpu_runs import Run, Runner, kill_one, strict, watch_memory

Result = dict[str, Any]
"""Figures of a check, with `passed`: true, false, or null where it could not be run."""

KILL_LIMIT_S = 10
GROWTH_LIMIT = 0.05
"""Allowed growth of the host memory from the second quarter of the soak to its end."""
COMMON = ("data=synthetic", "epochs=100000", "evaluate.every=0", "log_every=10")
AFTER_THE_CAUSE = ("Traceback", "lost rank", "Connection closed", "Watchdog caught")


@dataclass(frozen=True)
class Plan:
    """Size of the runs."""

    stages: int
    processes: int
    """P of the pipeline: K, or 1 where there is one GPU."""
    settings: tuple[str, ...]
    steps: int
    """Of the soak."""


def plan_for(devices: int) -> Plan:
    """The runs for a machine with this number of GPUs; 0: the rehearsal."""
    if devices == 0:
        small = ("data.samples=100", "data.image_size=16", "model.width=4", "batch_size=32")
        cpu = ("pipeline.backend=gloo", "pipeline.threads=1")
        return Plan(2, 2, (*COMMON, *small, *cpu), steps=200)
    stages = max(2, min(devices, 4))
    large = ("data.samples=4000", "model.width=128", "batch_size=128", "pipeline.backend=nccl")
    return Plan(stages, min(stages, devices), (*COMMON, *large), steps=1000)


class Checks:
    """The checks, each a method that returns its result."""

    def __init__(self, runner: Runner, plan: Plan) -> None:
        self._runner = runner
        self._plan = plan
        self._soak: Run | None = None

    def parity(self) -> Result:
        """Equal weights, with an uneven last batch, dropout and both precisions."""
        if self._plan.processes == 1:
            return {"passed": None, "reason": "needs two GPUs"}
        result: Result = {"passed": True}
        for precision in ("fp32", "bf16"):
            equal = self._equal(precision)
            result[precision] = equal
            result["passed"] = result["passed"] and equal is True
        return result

    def _equal(self, precision: str) -> bool | str:
        hashes = []
        for processes in (1, self._plan.processes):
            run = self._train(
                f"parity_{precision}_{processes}",
                processes,
                40,
                "deterministic=true",
                "model.dropout=0.1",
                f"precision={precision}",
            )
            if not run.ended_well():
                return run.last_lines()
            hashes.append(run.hashes)
        return hashes[0] == hashes[1]

    def no_waiting(self) -> Result:
        """`torch.cuda.set_sync_debug_mode("error")` around every step."""
        start = strict(self._plan.processes)
        run = self._train("no_waiting", self._plan.processes, 40, start=start)
        return _of(run, {"steps": 40})

    def soak(self) -> Result:
        """Peak memory of the device as after a tenth of the steps; host memory does not grow."""
        processes, steps = self._plan.processes, self._plan.steps
        short = self._train("short", processes, steps // 10)
        run = self._train("soak", processes, steps, during=watch_memory)
        if not (short.ended_well() and run.ended_well()):
            return _of(run if short.ended_well() else short, {})
        self._soak = run
        peaks = [_peak(short), _peak(run)]
        growth = host_growth(run.watched)
        # On the CPU the peak is host memory, which `growth` checks.
        flat = run.summary["device"] == "cpu" or peaks[1] <= 1.01 * peaks[0]
        passed = flat and growth is not None and growth <= GROWTH_LIMIT
        return {"passed": passed, "steps": steps, "peak_bytes": peaks, "host_growth": growth}

    def kill(self) -> Result:
        """SIGKILL to the last rank in the middle of training."""
        if self._plan.processes == 1:
            return {"passed": None, "reason": "needs two GPUs"}
        run = self._train("kill", self._plan.processes, 10**6, during=kill_one)
        return judge_kill(run, self._plan.processes - 1)

    def throughput(self) -> Result:
        """P = K from the soak, P = 1 from a run of a fifth of its steps."""
        one = self._train("one_process", 1, self._plan.steps // 5)
        if not one.ended_well() or self._soak is None:
            return _of(one, {"passed": False})
        rates = {"1": one.rate, str(self._plan.processes): self._soak.rate}
        return {"passed": None not in rates.values(), "samples_per_second": rates}

    def _train(self, name: str, processes: int, steps: int, *overrides: str, **how: Any) -> Run:
        shape = (f"pipeline.stages={self._plan.stages}", f"pipeline.processes={processes}")
        return self._runner.run(name, *shape, f"max_steps={steps}", *overrides, **how)


def _of(run: Run, figures: Result) -> Result:
    if run.ended_well():
        return {"passed": True, **figures}
    return {"passed": False, "status": run.status, "output": run.last_lines()}


def _peak(run: Run) -> int:
    return max(int(stage["peak_memory_bytes"]) for stage in run.summary["per_stage"])


def host_growth(samples: Sequence[int]) -> float | None:
    """Relative growth from the second quarter to the last; None with too few samples."""
    quarter = len(samples) // 4
    if quarter < 2:
        return None
    return mean(samples[-quarter:]) / mean(samples[quarter : 2 * quarter]) - 1


def judge_kill(run: Run, rank: int) -> Result:
    """Whether all ended in time and the first error reported is the kill of `rank`."""
    cause = run.stderr.find("was ended by SIGKILL")
    line = run.stderr[:cause].rpartition("\n")[2] if cause >= 0 else ""
    others = [at for word in AFTER_THE_CAUSE if (at := run.stderr.find(word)) >= 0]
    first = (
        cause >= 0 and line.startswith(f"rank {rank} ") and cause < min(others, default=cause + 1)
    )
    seconds = run.watched[0] / 1000 if run.watched else None
    in_time = seconds is not None and seconds <= KILL_LIMIT_S
    figures = {"seconds": seconds, "cause_first": first, "status": run.status}
    if in_time and first and run.status == 1:
        return {"passed": True, **figures}
    return {"passed": False, **figures, "output": run.last_lines()}
