"""Tests of many processes that look like ordinary ones.

    def chain(group, batches):            # a function of a module, run by every rank
        ...
        return what_this_rank_found

    results = run_world(layout(2), chain, 5)      # by rank

The processes come from a fork server that has imported torch and dglpipe once, and meet
over a file, so a world of some ranks costs tenths of a second and needs no port. Every
world has a deadline. When a rank fails, all ranks' tracebacks are shown in order of time.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from dglpipe.cli.compose import Arguments, compose
from dglpipe.config import Config, parse, to_tree
from dglpipe.data import DataInfo
from dglpipe.monitoring.metrics import Collector, Line
from dglpipe.partition.stage_method import method_of
from dglpipe.partition.staged_network import StagedNetwork, build_staged_network
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.process_group import ProcessGroup, rendezvous
from dglpipe.pipeline.topology import Layout, Topology, plan_layout
from dglpipe.pipeline.weights import named_tensors, sha256
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.trainer import Worker
from dglpipe.runtime.worker import open_worker

CPU = Device(torch.device("cpu"), "gloo")
TIMEOUT_S = 30.0
"""How long a rank waits for another one."""
GRACE_S = 5.0
"""How long the other ranks may take to tell their story after the first failure."""
PRELOAD = ["pytest", "torch._dynamo", "torch.utils.tensorboard", "dglpipe.cli.train"]

SMALL = (
    "batch_size=400",
    "epochs=2",
    "optimizer.lr=0.05",
    "timeout_s=30",
    "pipeline.threads=1",
    "pipeline.split=even",
    "pipeline.checked=true",
)
"""Digits in 4 batches an epoch, the last of 237 rows; links look for misuse of buffers."""
WIDTH = "model.width=4"
GROUPS = ("model", "head", "data", "optimizer", "schedule", "method", "precision")


def make_config(*overrides: str) -> Config:
    """A small run of `cnn6` (or another `model=`), with `overrides` as on the command line."""
    other = any(override.startswith("model=") for override in overrides)
    return copy.deepcopy(_composed((*SMALL, *(() if other else (WIDTH,)), *overrides)))


@functools.lru_cache
def _composed(overrides: tuple[str, ...]) -> Config:
    """Hydra takes tenths of a second, so it is asked once for each choice of groups."""
    groups = tuple(one for one in overrides if one.partition("=")[0] in GROUPS)
    tree = to_tree(_composed_groups(groups))
    others = [one for one in overrides if one not in groups]
    for override in OverridesParser.create().parse_overrides(others):
        *path, last = override.key_or_group.split(".")
        node = functools.reduce(dict.__getitem__, path, tree)
        assert last in node, f"no such key: {override.key_or_group}"
        node[last] = override.value()
    return parse(tree)


@functools.lru_cache
def _composed_groups(groups: tuple[str, ...]) -> Config:
    custom = [one.removesuffix("=custom") for one in groups if one.endswith("=custom")]
    targets = [f"{group}.target=plug_ins:plain_network" for group in custom]
    if "model=torchvision" in groups:
        targets.append("model.name=resnet18")
    return compose(Arguments([*groups, *targets]))


def build_stages(
    config: Config, data: DataInfo, stages: int, meta: bool = False, rows: int | None = None
) -> StagedNetwork:
    """The network of `config` in K stages; see `build_staged_network`."""
    return build_staged_network(config, method_of(config.method), data, stages, meta, rows)


def layout(stages: int, processes: int | None = None, replicas: int = 1) -> Layout:
    """One thread a process; P = K unless given."""
    return Layout(stages, processes or stages, replicas, threads=1)


# ---------------------------------------------------------------- worlds


@dataclass(frozen=True)
class RankFailure:
    """The end of one rank."""

    time_ns: int
    rank: int
    kind: str
    """Name of the exception's class; `silent` for a rank that said nothing."""
    message: str
    trace: str


class WorldError(AssertionError):
    """Some rank failed, or the deadline passed.

    Attributes:
        failures: in order of time.
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
        function: of a module, so that other processes can import it.
        deadline_s: seconds after which the world is killed.
        connected: False: `function(topology, store, *args)` connects the rank itself.

    Returns:
        What each rank returned.

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


class _World:
    """The processes of one call of `run_world`."""

    def __init__(
        self, layout: Layout, function: Callable[..., Any], args: Sequence[Any], folder: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = folder
        self._processes: list[BaseProcess] = []
        self._ends: dict[connection.Connection, int] = {}
        for rank in range(layout.world_size):
            ours, theirs = context.Pipe(duplex=False)
            task = (theirs, layout, rank, os.fspath(folder), function, args)
            process = context.Process(target=_rank_main, args=task, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends[ours] = rank
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
            said = pickle.loads(end.recv_bytes())
        except EOFError:
            self._processes[rank].join()
            code = self._processes[rank].exitcode
            text = f"ended without a word, exit code {code}\n{self._stacks(rank)}"
            self._failures.append(RankFailure(time.time_ns(), rank, "silent", text, text))
        else:
            if isinstance(said, RankFailure):
                self._failures.append(said)
            else:
                self._results[rank] = said[0]
        end.close()

    def _all(self) -> list[RankFailure]:
        """The failures, and where the ranks are that have not ended."""
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
    group = ProcessGroup.connect(topology, CPU, store, TIMEOUT_S, checked=True)
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
        said: Any = (function(layout.at(rank), store, *args),)
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        said = RankFailure(time.time_ns(), rank, type(error).__name__, str(error), trace)
    end.send_bytes(pickle.dumps(said))
    end.close()
    # The threads of gloo may still wait for a neighbour that will never answer.
    os._exit(0)


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainedNetwork:
    """What a run left behind, without its files."""

    finals: list[dict[str, Any]]
    """The entries of `per_stage` in summary.json, by stage, of replica 0."""
    lines: list[Line]
    """What would be in metrics.jsonl."""
    tensors: dict[tuple[int, int], dict[str, Tensor]]
    """(replica, stage) -> weights and buffers, by key."""

    @property
    def hashes(self) -> list[str]:
        """weights_sha256 by stage."""
        return [final["weights_sha256"] for final in self.finals]

    def tests(self) -> list[Line]:
        """The lines of the last evaluation, by stage, the ensemble's last: they come in the
        order in which the ranks were heard."""
        tests = [line for line in self.lines if line.kind == "test"]
        last = max(line.step for line in tests)
        return sorted((line for line in tests if line.step == last), key=lambda at: str(at.stage))


def train_world(
    config: Config,
    layout: Layout | None = None,
    run_dir: Path | None = None,
    deadline_s: float = 60,
) -> TrainedNetwork:
    """Trains as `dglpipe train` does, in processes of the fork server.

    Args:
        layout: None: what the configuration asks for.
        run_dir: where final weights and checkpoints go; None: nowhere.
    """
    return train_all([config], layout, run_dir, deadline_s)[0]


def train_all(
    configs: Sequence[Config],
    layout: Layout | None = None,
    run_dir: Path | None = None,
    deadline_s: float = 60,
) -> list[TrainedNetwork]:
    """`train_world` for one configuration after the other, in the same processes."""
    layout = layout or plan_layout(configs[0].pipeline, configs[0].method, cores=1)
    said = run_world(layout, _train_all, configs, run_dir, deadline_s=deadline_s)
    return [_gather(layout, [of_rank[at] for of_rank in said]) for at in range(len(configs))]


def hash_all(configs: Sequence[Config], layout: Layout, deadline_s: float = 60) -> list[list[str]]:
    """weights_sha256 by stage, for each configuration.

    Leaves out the last report, which takes longer than such short runs.
    """
    said = run_world(layout, _hash_all, configs, deadline_s=deadline_s)
    firsts = [rank for rank in range(layout.world_size) if layout.at(rank).replica == 0]
    return [[digest for rank in firsts for digest in said[rank][at]] for at in range(len(configs))]


def _hash_all(group: ProcessGroup, configs: Sequence[Config]) -> list[list[str]]:
    store, hashes = group.store, []
    for number, config in enumerate(configs):
        group.store = PrefixStore(f"run{number}", store)
        worker = make_worker(group, config)
        worker.run()
        hashes.append([sha256(named_tensors(stage.learner)) for stage in worker.chain.stages])
    group.store = store
    return hashes


def _gather(layout: Layout, said: Sequence[Any]) -> TrainedNetwork:
    finals, lines, _ = said[0]
    firsts = [rank for rank in range(layout.world_size) if layout.at(rank).replica == 0]
    found = [stage for rank in firsts for stage in finals[rank]["stages"]]
    stages = sorted(found, key=lambda stage: stage["stage"])
    tensors = {key: value for _, _, own in said for key, value in own.items()}
    assert [stage["stage"] for stage in stages] == list(range(layout.stages))
    assert len(tensors) == layout.stages * layout.replicas
    return TrainedNetwork(stages, lines, tensors)


class _Lines:
    """A sink that keeps every line."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def line(self, line: Line) -> None:
        self.lines.append(line)

    def close(self) -> None:
        """Nothing is kept open."""


def _train_all(group: ProcessGroup, configs: Sequence[Config], run_dir: Path | None) -> list[Any]:
    store, said = group.store, []
    for number, config in enumerate(configs):
        group.store = PrefixStore(f"run{number}", store)
        said.append(_train(group, config, run_dir))
    group.store = store
    return said


def _train(group: ProcessGroup, config: Config, run_dir: Path | None) -> Any:
    topology = group.topology
    worker = make_worker(group, config, run_dir)
    sink = _Lines()
    size, replicas = topology.layout.world_size, topology.layout.replicas
    collector = Collector(group.store, size, replicas, [sink]) if topology.rank == 0 else None
    worker.run()
    worker.finish()
    finals = collector.finals(config.timeout_s) if collector else []
    tensors = {
        (topology.replica, stage.index): named_tensors(stage.learner)
        for stage in worker.chain.stages
    }
    return finals, sink.lines, tensors


def make_worker(group: ProcessGroup, config: Config, run_dir: Path | None = None) -> Worker:
    """The worker of this rank, ready to run."""
    source = open_images(config)
    return open_worker(config, source, CPU, group, RunDir(run_dir) if run_dir else None)


# ---------------------------------------------------------------- commands


DGLPIPE = (sys.executable, "-m", "dglpipe")
"""`dglpipe` as users start it."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def small(*overrides: str) -> list[str]:
    """The overrides of `make_config`, for a command line."""
    return [*SMALL, WIDTH, *overrides]


class Command:
    """A program in a session of its own, its output kept in files.

    Args:
        words: what to run. Without a program in front, the arguments of `dglpipe`: they run
            in a process of the fork server whose workers are forked in their turn, which
            spares seconds of importing.
        folder: where it runs, and where its output is kept.
        environment: on top of this process's own; the tests' plug-ins can be imported.
    """

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [os.fspath(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), **(environment or {})}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | _Forked
        if words[0] == sys.executable:
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
        """Waits until `holds()` gives something true while the program runs, and returns that."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            if result := holds():
                return result
            time.sleep(0.02)
        raise AssertionError(f"waited in vain\n{self.stdout}\n{self.stderr}")

    def wait_for_step(self, run_dir: Path, step: int, seconds: float = 60) -> list[int]:
        """Waits until `metrics.jsonl` tells of `step`; returns the pids of the workers, by rank."""

        def done() -> bool:
            lines = RunDir(run_dir).metrics.read_text().splitlines()
            told = [json.loads(line) for line in lines]
            return {0, 1} <= {line["stage"] for line in told if line["step"] >= step}

        self.wait_for(lambda: RunDir(run_dir).metrics.exists() and done(), seconds)
        workers = json.loads(RunDir(run_dir).workers.read_text())
        self._workers = [worker["pid"] for worker in workers]
        return self._workers

    def alive(self) -> list[int]:
        """Processes of the session, and workers in sessions of their own, that run."""
        sessions = {self.pid, *self._workers}
        return [pid for pid, session in _running() if session in sessions]

    def assert_nobody_left(self, seconds: float = 10) -> None:
        """Within `seconds` no process of the program is left."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.alive() == []

    def kill(self) -> list[int]:
        """Kills what is left, and says what that was."""
        left = self.alive()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        return left


class _Forked:
    """A process of the fork server, with the methods of a `Popen` that are used here."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
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
    """Programs in the background of a shell inherit that they ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _command_main(words: list[str], folder: str, environment: dict[str, str]) -> None:
    from dglpipe.cli.main import main

    os.setsid()
    _answer_to_ctrl_c()
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    _fork_workers()
    main(words)


def _fork_workers() -> None:
    """Makes the launcher fork its workers; they get the signal handlers of spawned ones."""
    from dglpipe.runtime import launcher

    configure, enter = launcher._launch_config, launcher._entry

    def configure_fork(*args: Any) -> Any:
        config = configure(*args)
        config.start_method = "fork"
        return config

    def enter_afresh(*args: Any) -> Any:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        return enter(*args)

    launcher._launch_config, launcher._entry = configure_fork, enter_afresh


def _running() -> Iterator[tuple[int, int]]:
    """(pid, session) of all processes but those that have ended unreaped."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = file.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                yield int(file.parent.name), int(session)
