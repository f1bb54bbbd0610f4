"""Training commands whose processes are found and killed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

MARK = "DGLPIPE_KILLS_TRIAL"
"""Environment variable that every process of a trial inherits."""
END_S = 30.0


class Command:
    """A training command in its own session, with its output in a file."""

    def __init__(self, words: Sequence[str], output: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._file = output.open("ab")
        environment = {**os.environ, MARK: self.mark}
        self._process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def status(self) -> int | None:
        """The exit status; None while the command runs."""
        return self._process.poll()

    def alive(self) -> list[int]:
        """Processes of the command, zombies excluded."""
        self._process.poll()
        return [pid for pid in marked(self.mark) if is_running(pid)]

    def wait(self, seconds: float) -> int | None:
        """The exit status; None if the command still runs after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def end(self) -> list[int]:
        """Kills the remaining processes, waits for their end, and returns their process IDs.

        Raises:
            TimeoutError: a process is still there after `END_S` seconds.
        """
        left = self.alive()
        for pid in left:
            kill(pid)
        self._process.wait()
        # Orphans end later than the signal, and have no parent here that could wait for them.
        deadline = time.monotonic() + END_S
        while still := self.alive():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {still} have not ended after SIGKILL")
            time.sleep(0.01)
        self._file.close()
        return left


def marked(mark: str) -> list[int]:
    """Process IDs of the processes with `mark` in their environment."""
    text = f"{MARK}={mark}".encode()
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if text in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def kill(pid: int) -> bool:
    """Sends SIGKILL; returns whether the process existed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False
