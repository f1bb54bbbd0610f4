"""Time and memory of a training run from its command to its first step."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from checkouts import TIMEOUT_S, Checkout, Training

LOOK_S = 0.01
"""Seconds between two polls of metrics.jsonl."""
MEMORY_LOOKS = 25
"""Polls of metrics.jsonl per poll of the memory of the processes."""
STOP_S = 30
"""Seconds that an interrupted run has to stop its processes."""


@dataclass(frozen=True)
class FirstStep:
    """Time and memory of a run up to its first step.

    Attributes:
        seconds: seconds from the start of the command.
        peaks: peak resident bytes of every process, the largest first.
    """

    seconds: float
    peaks: tuple[int, ...]


@dataclass
class SessionMemory:
    """Peak resident memory of all processes of a session, from the kernel (VmHWM).

    The kernel keeps the high-water mark of a process, so a poll need not coincide with the peak:
    each process only has to be polled once after its peak.
    """

    session: int
    peaks: dict[int, int] = field(default_factory=dict)

    def look(self) -> None:
        """Read the high-water marks of the running processes."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError, ValueError):
                    self._look_at(folder)

    def _look_at(self, folder: Path) -> None:
        if session_of((folder / "stat").read_text()) != self.session:
            return
        peak = peak_of((folder / "status").read_text())
        pid = int(folder.name)
        self.peaks[pid] = max(peak, self.peaks.get(pid, 0))


def session_of(stat: str) -> int:
    """Session of a process, from /proc/PID/stat; the name in brackets may hold anything."""
    return int(stat.rpartition(")")[2].split()[3])


def peak_of(status: str) -> int:
    """Bytes of VmHWM, from /proc/PID/status; 0 for a process that has ended."""
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0


def measure(checkout: Checkout, overrides: Sequence[str], stages: int, run_dir: Path) -> FirstStep:
    """Start `dglpipe train`, wait for the end of the first step, and interrupt the run.

    Args:
        stages: K of the run.

    Raises:
        CheckoutError: the run ended, or TIMEOUT_S passed, before the first step.
    """
    start = time.perf_counter()
    with checkout.training([*overrides, "log_every=1"], run_dir) as training:
        step = _watch(training, start, stages)
        interrupt(training.process)
    return step


def _watch(training: Training, start: float, stages: int) -> FirstStep:
    memory = SessionMemory(training.process.pid)
    metrics = training.run_dir / "metrics.jsonl"
    looks = 0
    while not has_first_step(metrics, stages):
        status = training.process.poll()
        if status is not None and not has_first_step(metrics, stages):
            raise training.error(f"status {status} before the first step")
        if time.perf_counter() - start > TIMEOUT_S:
            raise training.error(f"no first step after {TIMEOUT_S} s")
        if looks % MEMORY_LOOKS == 0:
            memory.look()
        looks += 1
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - start
    memory.look()
    return FirstStep(seconds, tuple(sorted(memory.peaks.values(), reverse=True)))


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Send SIGINT and wait; a process that has ended, or does not stop, is left as it is."""
    with suppress(subprocess.TimeoutExpired):
        process.send_signal(signal.SIGINT)
        process.wait(STOP_S)


def has_first_step(metrics: Path, stages: int) -> bool:
    """Whether metrics.jsonl has the training line of step 1 of the last stage."""
    if not metrics.exists():
        return False
    lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return any(_is_first_step(json.loads(line), stages) for line in lines)


def _is_first_step(line: dict[str, object], stages: int) -> bool:
    return (line["kind"], line["step"], line["stage"]) == ("train", 1, stages - 1)
