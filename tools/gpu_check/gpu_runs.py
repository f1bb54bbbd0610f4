"""Runs of dglpipe as a user starts them, watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("gpu_check.py")
TRAIN = ("-m", "dglpipe", "train")


def strict(processes: int) -> tuple[str, ...]:
    """How to start workers in which a step that waits for the device is an error."""
    count = f"--nproc-per-node={processes}"
    return ("-m", "torch.distributed.run", "--standalone", count, str(SCRIPT), "--worker")


@dataclass(frozen=True)
class Run:
    """A run that has ended."""

    status: int
    stderr: str
    path: Path
    watched: list[int] = field(default_factory=list)
    """Resident memory of all workers in bytes, from sample to sample."""

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`; empty if there is none."""
        file = self.path / "summary.json"
        return json.loads(file.read_text()) if file.exists() else {}

    @property
    def hashes(self) -> list[str]:
        """Fingerprints of the final weights, by stage."""
        return [stage["weights_sha256"] for stage in self.summary["per_stage"]]

    @property
    def rate(self) -> float | None:
        """Samples per second."""
        rate: float | None = self.summary["throughput"]["samples_per_second"]
        return rate

    def ended_well(self) -> bool:
        return self.status == 0

    def last_lines(self, lines: int = 15) -> str:
        """The end of its stderr."""
        return "\n".join(self.stderr.splitlines()[-lines:])


class Runner:
    """Starts runs that share a folder and settings.

    Args:
        settings: overrides of every run.
    """

    def __init__(self, folder: Path, settings: Sequence[str]) -> None:
        self._folder = folder
        self._settings = list(settings)

    def run(
        self,
        name: str,
        *overrides: str,
        start: Sequence[str] = TRAIN,
        during: Callable[[subprocess.Popen[bytes], Path], Any] | None = None,
    ) -> Run:
        """Starts a run and waits for its end.

        Args:
            name: of its directory, once only.
            during: called as soon as the run has been started.
        """
        path, log = self._folder / name, self._folder / f"{name}.stderr"
        command = [sys.executable, *start, *self._settings, *overrides, f"run_dir={path}"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
            try:
                watched = during(process, path) if during is not None else None
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        return Run(status, log.read_text(errors="replace"), path, watched or [])


def workers(path: Path) -> list[int]:
    """Process ids of the workers, by rank; empty before the rendezvous."""
    file = path / "workers.json"
    return [worker["pid"] for worker in json.loads(file.read_text())] if file.exists() else []


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and was not yet collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def resident(pid: int) -> int:
    """Resident memory of the process in bytes, 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch_memory(process: subprocess.Popen[bytes], path: Path, every: float = 0.2) -> list[int]:
    """Samples the resident memory of all workers until the run ends."""
    samples = []
    while process.poll() is None:
        pids = workers(path)
        sizes = [resident(pid) for pid in pids]
        # Before the first line the run is still warming up.
        if all(sizes) and _has_line(path):
            samples.append(sum(sizes))
        time.sleep(every)
    return samples


def kill_one(process: subprocess.Popen[bytes], path: Path, patience: float = 120) -> list[int]:
    """Kills the worker of the last rank in the middle of training.

    Returns:
        Milliseconds until every other process was gone; empty if training never started.
    """
    deadline = time.monotonic() + patience
    while not _has_line(path):
        if process.poll() is not None or time.monotonic() > deadline:
            return []
        time.sleep(0.05)
    pids = workers(path)
    os.kill(pids[-1], signal.SIGKILL)
    killed = time.monotonic()
    while any(alive(pid) for pid in pids) or process.poll() is None:
        if time.monotonic() > killed + patience:
            break
        time.sleep(0.02)
    return [round(1000 * (time.monotonic() - killed))]


def _has_line(path: Path) -> bool:
    file = path / "metrics.jsonl"
    return file.exists() and file.stat().st_size > 0
