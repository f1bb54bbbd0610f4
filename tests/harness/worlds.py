"""Tests of many processes that look like ordinary tests.

    def chain(group, batches):            # a function of a module, run by every rank
        ...
        return what_this_rank_found

    results = run_world(layout(2), chain, 5)      # by rank

The processes come from a fork server that has imported torch and dglpipe once, and
rendezvous over a file: a world of a few ranks costs tenths of a second and needs no port.
Every world has a deadline. When a rank fails, the tracebacks of all ranks are shown in order
of time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import pickle
import pkgutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed.distributed_c10d import Store

import dglpipe
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stores import rendezvous
from dglpipe.pipeline.topology import Layout, Topology

CPU = Device(torch.device("cpu"), "gloo")
TIMEOUT_S = 30.0
"""Seconds that a rank waits for another rank."""
GRACE_S = 5.0
"""Seconds within which the other ranks have to report after the first failure."""
PRELOAD = ["pytest", "torch._dynamo", "torch.utils.tensorboard", "torchvision", "hydra"]
"""Beside dglpipe: what the fork server imports, so that no test process has to."""


@dataclass(frozen=True)
class RankFailure:
    """The failure of one rank."""

    time_ns: int
    rank: int
    kind: str
    """Name of the exception's class; `silent` for a rank that ended without a report."""
    message: str
    trace: str


class WorldError(AssertionError):
    """Some rank failed, or the deadline passed.

    Attributes:
        failures: the failures in order of time.
    """

    def __init__(self, headline: str, failures: Sequence[RankFailure]) -> None:
        self.failures = sorted(failures, key=lambda failure: failure.time_ns)
        first = self.failures[0].time_ns if self.failures else 0
        parts = [
            f"--- rank {one.rank}, {(one.time_ns - first) / 1e9:.3f} s after the first\n{one.trace}"
            for one in self.failures
        ]
        super().__init__("\n".join([headline, *parts]))


def run_world(
    layout: Layout,
    function: Callable[..., Any],
    *args: Any,
    deadline_s: float = 60,
    connected: bool = True,
) -> list[Any]:
    """Calls `function(group, *args)` in every rank of `layout`, links checked.

    Args:
        function: a function at module level, so that other processes can import it.
        deadline_s: seconds after which the world is killed.
        connected: False: `function(topology, store, *args)` connects the rank itself.

    Returns:
        The result of each rank, by rank.

    Raises:
        WorldError: a rank raised, died, or was not done in time.
    """
    with tempfile.TemporaryDirectory(prefix="world_") as folder:
        task = functools.partial(_connected, function) if connected else function
        world = _World(layout, task, args, Path(folder))
        try:
            return world.wait(deadline_s)
        finally:
            world.kill()


@functools.cache
def fork_server() -> ForkServerContext:
    """Starts processes that have imported all of dglpipe already.

    dglpipe imports most of its modules at first use, so each is named here. A process has one fork
    server, so the server is started here, before dglpipe starts one with fewer imports.
    """
    context = multiprocessing.get_context("forkserver")
    names = [module.name for module in pkgutil.walk_packages(dglpipe.__path__, "dglpipe.")]
    context.set_forkserver_preload([*PRELOAD, *sorted({*names} - {"dglpipe.__main__"})])
    forkserver.ensure_running()
    return context


class _World:
    """The processes of one call of `run_world`."""

    def __init__(
        self, layout: Layout, function: Callable[..., Any], args: Sequence[Any], folder: Path
    ) -> None:
        context = fork_server()
        self._folder = folder
        self._processes: list[BaseProcess] = []
        self._ends: dict[connection.Connection, int] = {}
        for rank in range(layout.world_size):
            receiver, sender = context.Pipe(duplex=False)
            task = (sender, layout, rank, os.fspath(folder), function, args)
            process = context.Process(target=_rank_main, args=task, daemon=True)
            process.start()
            sender.close()
            self._processes.append(process)
            self._ends[receiver] = rank
        self._results: dict[int, Any] = {}
        self._failures: list[RankFailure] = []

    def wait(self, deadline_s: float) -> list[Any]:
        deadline = time.monotonic() + deadline_s
        while self._ends:
            ready = connection.wait(list(self._ends), max(0.0, deadline - time.monotonic()))
            if not ready and self._failures:
                raise WorldError(f"rank {self._failures[0].rank} failed first", self._all())
            if not ready:
                headline = f"ranks {sorted(self._ends.values())} not done in {deadline_s:g} s"
                raise WorldError(headline, self._all())
            for end in ready:
                self._receive(end)
            if self._failures:
                deadline = min(deadline, time.monotonic() + GRACE_S)
        if self._failures:
            raise WorldError(f"{len(self._failures)} ranks failed", self._failures)
        return [self._results[rank] for rank in range(len(self._processes))]

    def _receive(self, end: connection.Connection) -> None:
        rank = self._ends.pop(end)
        try:
            answer = pickle.loads(end.recv_bytes())
        except EOFError:
            self._processes[rank].join()
            code = self._processes[rank].exitcode
            text = f"ended without a report, exit code {code}\n{self._stacks(rank)}"
            self._failures.append(RankFailure(time.time_ns(), rank, "silent", text, text))
        else:
            if isinstance(answer, RankFailure):
                self._failures.append(answer)
            else:
                self._results[rank] = answer[0]
        end.close()

    def _all(self) -> list[RankFailure]:
        """The failures, and the stacks of the ranks that have not ended."""
        for rank in self._ends.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._processes[rank].pid or 0, signal.SIGUSR1)
        time.sleep(0.2)
        hung = [
            RankFailure(time.time_ns(), rank, "hung", "still running", self._stacks(rank))
            for rank in self._ends.values()
        ]
        return [*self._failures, *hung]

    def _stacks(self, rank: int) -> str:
        file = self._folder / f"stacks_{rank}"
        return file.read_text() if file.exists() else ""

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


def _connected(function: Callable[..., Any], topology: Topology, store: Store, *args: Any) -> Any:
    plans = [one for arg in args for one in (arg if isinstance(arg, Sequence) else [arg])]
    both_ways = any(getattr(plan, "sends_down", False) for plan in plans)
    group = ProcessGroup.connect(topology, CPU, store, TIMEOUT_S, checked=True, both_ways=both_ways)
    result = function(group, *args)
    group.close()
    return result


def _rank_main(
    end: connection.Connection,
    layout: Layout,
    rank: int,
    folder: str,
    function: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    stacks = (Path(folder) / f"stacks_{rank}").open("w")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    torch.set_num_threads(layout.threads)
    try:
        where = f"file://{folder}/rendezvous"
        store = rendezvous(TIMEOUT_S, where, rank, layout.world_size)
        answer: Any = (function(layout.at(rank), store, *args),)
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        answer = RankFailure(time.time_ns(), rank, type(error).__name__, str(error), trace)
    end.send_bytes(pickle.dumps(answer))
    end.close()
    # Threads of gloo may still wait for a peer that has ended.
    os._exit(0)
