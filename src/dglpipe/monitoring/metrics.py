"""Collection of the metrics of all processes in the process that records the run.

A process sends its records through the store that all processes share. A thread polls the store,
sums the records of the replicas, and passes complete lines to its sinks
(metrics.jsonl, TensorBoard, progress display). Training never waits for the collection.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dglpipe.errors import PeerLostError, StorageError
from dglpipe.files import finite, writing

ENSEMBLE = "ensemble"
"""Name of the ensemble of exits in place of a stage number."""
PROBE = "probe"
"""Kind of the lines of convergence."""
POLL_SECONDS = 0.1
"""Pause of the collecting thread when no record is available."""


class Store(Protocol):
    """The part of `torch.distributed.Store` that carries records."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def delete_key(self, key: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Line:
    """One object of `metrics.jsonl`; a value is None where it does not apply."""

    kind: str
    epoch: int
    step: int
    stage: int | str
    loss: float | None
    accuracy: float | None
    learning_rate: float | None = None
    samples_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeLine:
    """A measurement of the convergence of a stage, as an object of `metrics.jsonl`; see
    `dglpipe.pipeline.probe`."""

    kind: str
    epoch: int
    step: int
    stage: int
    gradient_norm: float | None
    drift: float | None


AnyLine = Line | ProbeLine


@dataclass(frozen=True, slots=True)
class Sums:
    """Measurement of one replica of one stage: sums from which `combine` makes a `Line`."""

    kind: str
    epoch: int
    step: int
    stage: int | str
    rows: int
    loss: float | None
    correct: int | None
    learning_rate: float | None = None
    seconds: float | None = None

    def key(self) -> tuple[str, int, int | str]:
        """Identifies the line that the record belongs to."""
        return self.kind, self.step, self.stage


def combine(parts: Sequence[Sums]) -> Line:
    """Combines the sums of all replicas of a stage to one line."""
    one = parts[0]
    rows = sum(part.rows for part in parts)
    losses = [part.loss for part in parts if part.loss is not None]
    hits = [part.correct for part in parts if part.correct is not None]
    rates = [part.rows / part.seconds for part in parts if part.seconds]
    return Line(
        kind=one.kind,
        epoch=one.epoch,
        step=one.step,
        stage=one.stage,
        loss=sum(losses) / rows if losses and rows else None,
        accuracy=sum(hits) / rows if hits and rows else None,
        learning_rate=one.learning_rate,
        samples_per_second=sum(rates) if rates else None,
    )


def format_value(value: float | None, form: str = ".2%") -> str:
    """Formats `value` with the format specification `form`; None gives `-`."""
    return "-" if value is None else format(value, form)


def _key(rank: int, generation: int, number: int) -> str:
    return f"metrics/{rank}/{generation}/{number}"


class Reporter:
    """The sending side of the metrics, one in each process. Several threads may send.

    The records of a process arrive in the order in which they were sent.

    Args:
        generation: number of processes that have had this rank before, in this attempt.
    """

    def __init__(self, store: Store, rank: int, generation: int = 0) -> None:
        self._store = store
        self._rank = rank
        self._generation = generation
        self._count = 0
        self._lock = threading.Lock()

    def send(self, sums: Sums) -> None:
        """Sends one record, in one request to the store."""
        self._put({"sums": asdict(sums)})

    def send_probe(self, line: ProbeLine) -> None:
        """Sends the convergence of a stage, of all its replicas together."""
        self._put({PROBE: asdict(line)})

    def checkpoint(self, step: int, files: Sequence[Mapping[str, Any]]) -> None:
        """Reports that the files of this process for the checkpoint of `step` are on the disk.

        Args:
            files: the entries of the files in the manifest.
        """
        self._put({"checkpoint": {"step": step, "files": list(files)}})

    def finish(self, final: dict[str, Any]) -> None:
        """Sends the final report of this process."""
        self._put({"final": final})

    def _put(self, record: dict[str, Any]) -> None:
        with self._lock:
            key = _key(self._rank, self._generation, self._count)
            self._store.set(key, json.dumps(record))
            self._count += 1


class Sink(Protocol):
    """A receiver of all lines."""

    def line(self, line: AnyLine) -> None: ...

    def close(self) -> None: ...


Complete = Callable[[int, Sequence[Mapping[str, Any]]], None]
"""Receives the step of a checkpoint and the entries of the files of all processes."""


class Collector:
    """The receiving side of the metrics: a thread of the process that records the run.

    Args:
        store: the store to which the processes send.
        ranks: number of processes.
        replicas: number of records, one per replica, that make a line.
        sinks: receive the lines; `close` closes the sinks.
        complete: called when all processes have reported their files of a checkpoint. At that
            moment the sinks have all lines that were sent before the checkpoint.
    """

    def __init__(
        self,
        store: Store,
        ranks: int,
        replicas: int,
        sinks: Sequence[Sink],
        complete: Complete | None = None,
    ) -> None:
        self._store = store
        self._complete = complete
        self._files: dict[int, dict[int, Sequence[Mapping[str, Any]]]] = {}
        self._saved: dict[int, tuple[int, Sequence[Mapping[str, Any]]]] = {}
        self._next = [0] * ranks
        self._generations = [0] * ranks
        self._newest: dict[tuple[str, int | str], int] = {}
        self._lock = threading.Lock()
        self._replicas = replicas
        self._sinks = list(sinks)
        self._parts: dict[tuple[str, int, int | str], list[Sums]] = {}
        self._finals: dict[int, dict[str, Any]] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def finals(self, timeout_s: float) -> list[dict[str, Any]]:
        """Waits for the final reports of all processes, then stops the thread.

        Args:
            timeout_s: seconds.

        Returns:
            The reports by rank.

        Raises:
            PeerLostError: a process did not report in time.
        """
        deadline = time.monotonic() + timeout_s
        while len(self._finals) < len(self._next) and self._error is None:
            if time.monotonic() > deadline:
                missing = sorted(set(range(len(self._next))) - self._finals.keys())
                raise PeerLostError(f"no final report from ranks {missing} within {timeout_s:g} s")
            time.sleep(POLL_SECONDS / 10)
        self.close()
        return [self._finals[rank] for rank in range(len(self._next))]

    def renew(self, rank: int) -> tuple[int, Sequence[Mapping[str, Any]]] | None:
        """Receives the last records of a process that has ended. The next records of `rank` come
        from its next process; lines that this process sends again are ignored.

        Returns:
            Step and files of the newest checkpoint of `rank`; None: no checkpoint yet.
        """
        with self._lock:
            while self._poll(rank):
                pass
            self._generations[rank] += 1
            self._next[rank] = 0
            return self._saved.get(rank)

    def check(self) -> None:
        """Raises the error of the thread, if any."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stops the thread, closes the sinks, and raises the error of the thread, if any."""
        self._stop.set()
        self._thread.join()
        while self._sinks:
            sink = self._sinks.pop(0)
            try:
                sink.close()
            except StorageError as error:
                self._error = self._error or error
        self.check()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    received = [self._poll(rank) for rank in range(len(self._next))]
                if not any(received):
                    self._stop.wait(POLL_SECONDS)
        except BaseException as error:
            self._error = error

    def _poll(self, rank: int) -> bool:
        """Receives the next record of `rank`, if the record is in the store."""
        key = _key(rank, self._generations[rank], self._next[rank])
        if not self._store.check([key]):
            return False
        record = json.loads(self._store.get(key))
        self._store.delete_key(key)
        self._next[rank] += 1
        if "final" in record:
            self._finals[rank] = record["final"]
        elif "checkpoint" in record:
            self._add_files(rank, **record["checkpoint"])
        elif PROBE in record:
            self._pass_on(ProbeLine(**record[PROBE]))
        else:
            self._add(Sums(**record["sums"]))
        return True

    def _add(self, sums: Sums) -> None:
        parts = self._parts.setdefault(sums.key(), [])
        parts.append(sums)
        if len(parts) == self._replicas:
            self._pass_on(combine(self._parts.pop(sums.key())))

    def _pass_on(self, line: AnyLine) -> None:
        """Passes a new line to the sinks."""
        series = line.kind, line.stage
        if line.step <= self._newest.get(series, -1):
            return
        self._newest[series] = line.step
        for sink in self._sinks:
            sink.line(line)

    def _add_files(self, rank: int, step: int, files: Sequence[Mapping[str, Any]]) -> None:
        self._saved[rank] = step, files
        parts = self._files.setdefault(step, {})
        parts[rank] = files
        if len(parts) == len(self._next):
            del self._files[step]
            if self._complete is not None:
                self._complete(step, [file for part in parts.values() for file in part])


class JsonLines:
    """A sink that appends lines to `metrics.jsonl`.

    Args:
        count: lines that the file has.

    Attributes:
        count: lines of the file.
    """

    def __init__(self, path: Path, count: int = 0) -> None:
        self.count = count
        self._path = path
        with writing(path):
            self._file = path.open("a", buffering=1)

    def line(self, line: AnyLine) -> None:
        """Appends `line`.

        Raises:
            StorageError: the file cannot be written, or was deleted.
        """
        text = json.dumps(finite(asdict(line)), allow_nan=False) + "\n"
        try:
            with writing(self._path):
                self._file.write(text)
                if os.fstat(self._file.fileno()).st_nlink == 0:
                    raise FileNotFoundError(errno.ENOENT, "deleted")
        except StorageError:
            # Closing now drops the line, which would fail again at the exit of the process.
            with contextlib.suppress(OSError):
                self._file.close()
            raise
        self.count += 1

    def sync(self) -> None:
        """Returns when all lines are on the disk."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with writing(self._path):
            self._file.close()
