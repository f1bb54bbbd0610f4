"""Commands of `dglpipe` as processes, and their output."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dglpipe.runtime.run_dir import RunDir
from harness.processes import running
from harness.worlds import fork_server

DGLPIPE = (sys.executable, "-m", "dglpipe")
"""`dglpipe` as users start it."""
PROMPT_S = 25.0
"""Maximum seconds from the end of one process of a run to the end of all: two seconds on an idle
machine, more on a busy machine."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


class Command:
    """A program in its own session, with its output in files.

    Args:
        words: what to run: `DGLPIPE` or another program with its arguments, started as users
            start it, with an absolute path. Arguments of `dglpipe` alone run in a process of the
            fork server, whose workers are forked too: this saves the seconds in which processes
            load torch.
        folder: working directory, and folder of the output.
        environment: added to the environment of this process. The plug-ins of the tests can be
            imported.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [os.fspath(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | _Forked
        if Path(words[0]).is_absolute():
            with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
                self._process = subprocess.Popen(
                    words,
                    cwd=folder,
                    env={**os.environ, **own},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=_answer_to_ctrl_c,
                )
        else:
            self._process = _Forked(words, folder, own)
        self.pid = self._process.pid
        self._workers: list[int] = []

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text()

    def wait(self, seconds: float = 60) -> int:
        """The exit status; fails if the program takes longer than `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            story = f"not done in {seconds:g} s\n{self.stdout}\n{self.stderr}"
            raise AssertionError(story) from None

    def wait_for(self, holds: Callable[[], Any], seconds: float = 60) -> Any:
        """Waits until `holds()` returns a true value while the program runs; returns the value."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            if result := holds():
                return result
            time.sleep(0.02)
        raise AssertionError(f"waited in vain\n{self.stdout}\n{self.stderr}")

    def wait_for_step(self, run_dir: Path, step: int, seconds: float = 60) -> list[int]:
        """Waits until `metrics.jsonl` has lines of `step`; returns the pids by rank."""

        def done() -> bool:
            lines = RunDir(run_dir).metrics.read_text().splitlines()
            records = [json.loads(line) for line in lines]
            return {0, 1} <= {line["stage"] for line in records if line["step"] >= step}

        self.wait_for(lambda: RunDir(run_dir).metrics.exists() and done(), seconds)
        workers = json.loads(RunDir(run_dir).workers.read_text())
        self._workers = [worker["pid"] for worker in workers]
        return self._workers

    def alive(self) -> list[int]:
        """Processes of the session, and workers in sessions of their own, that run."""
        sessions = {self.pid, *self._workers}
        return [process.pid for process in running() if process.session in sessions]

    def children(self) -> list[int]:
        """Processes that the program itself has started."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        self._workers = [int(pid) for task in tasks for pid in task.read_text().split()]
        return self._workers

    def assert_nobody_left(self, seconds: float = PROMPT_S) -> None:
        """Asserts that every process of the program has ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.alive() == []

    def kill(self) -> list[int]:
        """Kills the remaining processes, and returns their process ids.

        The resource tracker of spawned processes ends a moment after a program that has ended.
        """
        deadline = time.monotonic() + 2
        while self._process.poll() is not None and self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        left = self.alive()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        return left


class _Forked:
    """A process of the fork server, with the methods of a `Popen` that are used here."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        context = fork_server()
        task = (list(words), os.fspath(folder), dict(environment))
        self._process = context.Process(target=_command_main, args=task)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired([], seconds)
        return self._process.exitcode


def _answer_to_ctrl_c() -> None:
    """Background programs of a shell inherit SIG_IGN for SIGINT; this undoes it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _command_main(words: list[str], folder: str, environment: dict[str, str]) -> None:
    import torch

    from dglpipe.cli.main import main

    torch.set_num_threads(1)  # the workers are forked: they would wait for threads of this process
    os.setsid()
    _answer_to_ctrl_c()
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    fork_workers()
    main(words)


def fork_workers() -> None:
    """Makes the launcher fork its workers; they get the signal handlers of spawned ones."""
    from dglpipe.runtime import supervisor

    enter = supervisor._main

    def enter_afresh(*args: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        enter(*args)

    supervisor.CONTEXT = multiprocessing.get_context("fork")
    supervisor._main = enter_afresh
