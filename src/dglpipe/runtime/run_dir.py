"""The paths of all files of a run, and the checks and the lock of the run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO

from dglpipe.config import Config, from_yaml
from dglpipe.errors import RunDirError
from dglpipe.files import name_of_part, write_whole, writing
from dglpipe.runtime.trust import require_trusted
from dglpipe.runtime.trust_words import Words

STATUSES = ("finished", "failed", "interrupted", "preempted")
"""Values of `status` in `summary.json`."""

logger = logging.getLogger("dglpipe")


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths below a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def workers(self) -> Path:
        return self.path / "workers.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def manifest(self) -> Path:
        return self.path / "final" / "manifest.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def timeline(self) -> Path:
        """The trace; the picture has the same name with the suffix `.png`."""
        return self.path / "timeline.json"

    @property
    def staleness(self) -> Path:
        """The picture of the ages of the batches that asynchronous stages read."""
        return self.path / "staleness.png"

    @property
    def convergence(self) -> Path:
        """The picture of gradient norms and drifts."""
        return self.path / "convergence.png"

    def timeline_part(self, rank: int) -> Path:
        """The spans of one process, until the spans of all processes are merged."""
        return self.logs / f"timeline_{rank}.json"

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def final(self, stage: int) -> Path:
        return self.path / "final" / f"stage_{stage}.safetensors"

    def log(self, rank: int) -> Path:
        return self.logs / f"rank_{rank}.log"

    def failure(self, rank: int) -> Path:
        return self.logs / f"failure_{rank}.json"

    def status(self) -> str | None:
        """`finished`, `failed`, `interrupted` or `unfinished`; None if there is no run."""
        if self.summary.is_file():
            # On a full disk, the summary may be truncated.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return str(json.loads(self.summary.read_text())["status"])
        torn = self._has_torn_config(self._lock.exists())
        return "unfinished" if self.config.is_file() and not torn else None

    def _has_torn_config(self, had_lock: bool) -> bool:
        """Whether `config.yaml` is empty or cut off, and the run ended before its first step.

        Args:
            had_lock: whether the directory had a lock before this process took it. Without a
                lock, a file that cannot be read may belong to another program.
        """
        started = (self.summary, self.workers, self.metrics, self.checkpoints, self.manifest.parent)
        if any(item.exists() for item in started):
            return False
        try:
            text = self.config.read_text()
            if text.strip("\0\n "):
                from_yaml(text)
                return False
        except ValueError:
            return had_lock
        except OSError:
            return False
        return True

    def finished_config(self, trust: Words = ()) -> Config:
        """The configuration of the finished run in this directory, without `model.weights`, whose
        file may no longer exist.

        Args:
            trust: names and files of the plug-ins that may be imported.

        Raises:
            RunDirError: this is not the directory of a finished run, its configuration is
                missing or damaged, or it names a plug-in that may not be imported.
        """
        status = self.status()
        if status != "finished":
            self._require_summary()
            holds = f"a run that is {status}" if status else "no run"
            if status == "unfinished":
                holds += f" (it has no {self.summary.name})"
            raise RunDirError(
                f"run: {self.path} holds {holds}; give the directory of a finished run"
            )
        try:
            text = self.config.read_text()
            config = from_yaml(text)
        except (OSError, ValueError) as error:
            raise RunDirError.damaged(self.config, error) from error
        require_trusted(config, self.config, text, trust)
        return replace(config, model=replace(config.model, weights=None))

    def _require_summary(self) -> None:
        """Raises RunDirError for a summary that cannot be read or has another status than a run
        can have: without it, the status of the run is unknown."""
        if not self.summary.exists():
            return
        try:
            status = json.loads(self.summary.read_text())["status"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunDirError.damaged(self.summary, error) from error
        if status not in STATUSES:
            raise RunDirError.damaged(self.summary, f"status: got {status!r}")

    def check(self, resume: str) -> None:
        """Checks that a run may use the directory; changes no file.

        With `resume=auto`, a finished run passes: its results are the results of the new run.

        Raises:
            RunDirError: the directory contains a finished or an unfinished run without
                `resume=auto`, a run in progress, or other files.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunDirError(f"run_dir: {self.path} is a file; give a directory")
        if self._lock.exists():
            # Without permission to write, `claim` fails later; a finished run can still be read.
            with contextlib.suppress(OSError), self._lock.open("a") as lock:
                self._take(lock)
        status = self.status()
        if status == "finished" and resume != "auto":
            raise RunDirError(
                f"run_dir: {self.path} holds a finished run; give another directory or delete it"
            )
        if status is not None and resume != "auto":
            raise RunDirError(
                f"run_dir: {self.path} holds an unfinished run; give another directory, delete "
                "it, or continue with resume=auto"
            )
        others = self._others() if status is None else []
        if others:
            raise RunDirError(
                f"run_dir: {self.path} holds {others[0]} but no run "
                f"(there is no {self.config.name}); give a new or empty directory"
            )

    def _others(self) -> list[str]:
        """Files and folders in a directory without a run that no killed start has left."""
        own = {self._lock, self.logs, *self._parts(self.path)}
        if self._has_torn_config(self._lock.exists()):
            own.add(self.config)
        others = [item for item in self.path.iterdir() if item not in own]
        if self.logs.is_dir():
            parts = self._parts(self.logs)
            found = [item for item in self.logs.iterdir() if item not in parts]
            others += [item for item in found if not item.match("rank_*.log")]
        return sorted(str(item.relative_to(self.path)) for item in others)

    def _parts(self, folder: Path) -> set[Path]:
        """Part files in `folder`, below a name of this run directory."""
        files = (self.config, self.workers, self.metrics, self.summary, self.timeline)
        pictures = (self.timeline.with_suffix(".png"), self.staleness, self.convergence)
        names = {item.name for item in (*files, *pictures, self.manifest)}
        patterns = ("failure_*.json", "timeline_*.json", "stage_*")
        found = {item: name_of_part(item) for item in folder.glob(".*") if item.is_file()}
        return {
            item
            for item, name in found.items()
            if name in names or (name and any(Path(name).match(one) for one in patterns))
        }

    def _take(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirError(
                f"run_dir: {self.path} is in use by a run that has not ended; "
                "give another directory"
            ) from None

    def claim(self, resume: str) -> IO[str]:
        """Creates and locks the directory, and deletes the part files of killed processes.

        The lock is held while the returned file is open. The file `.lock` itself stays: it does
        not block a later run.

        Raises:
            RunDirError: as `check`; the directory holds a finished run or cannot be written to.
        """
        self.check(resume)
        had_lock = self._lock.exists()
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a")
            self._take(lock)
            if self.status() == "finished":  # by another process, since the check
                raise RunDirError(f"run_dir: {self.path} holds a finished run")
            self._sweep(had_lock)
        except OSError as error:
            raise RunDirError(
                f"run_dir: {self.path} cannot be written to ({error.strerror}); "
                "give another directory"
            ) from None
        return lock

    def _sweep(self, had_lock: bool) -> None:
        """Deletes the incomplete and temporary files of killed processes of an earlier start."""
        if self._has_torn_config(had_lock):
            self.config.unlink()
        steps = self.checkpoints.glob("*") if self.checkpoints.is_dir() else ()
        for folder in (self.path, self.logs, self.manifest.parent, *steps):
            for part in self._parts(folder):
                part.unlink(missing_ok=True)

    def forget_end(self) -> None:
        """Deletes the summary and the failure records of a run that is resumed."""
        for old in (*self.logs.glob("failure_*.json"), self.summary):
            with writing(old):
                old.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the directory of a run that failed before its first step.

        Configuration and lock come last: if this process is killed, a later start recognizes the
        rest of the directory.
        """
        last = (self.config, self._lock)
        for _ in range(10):  # another rank may still write its failure record
            for item in self.path.glob("*"):
                if item not in last and item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                elif item not in last:
                    with contextlib.suppress(OSError):
                        item.unlink()
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(0.05)

    def forget_after(self, step: int, by_stage: Mapping[int, int], wanted: int = 0) -> int:
        """Deletes the lines of `metrics.jsonl` that a run resumed after `step` writes again. Warns
        of lines that cannot be read and of lines that are missing.

        Args:
            by_stage: stage -> step, for stages that resume after another step.
            wanted: number of lines when the checkpoint of `step` was complete.

        Returns:
            The number of lines that are left.
        """
        lines = self.metrics.read_bytes().split(b"\n") if self.metrics.is_file() else [b""]
        if len(lines) - 1 < wanted:
            text = "%s: got %d lines, %d when the checkpoint was written; the others are lost"
            logger.warning(text, self.metrics, len(lines) - 1, wanted)
        kept = []
        for number, line in enumerate(lines, 1):
            is_before = _is_before(line, step, by_stage)
            if is_before:
                kept.append(line.decode())
            elif is_before is None and number < len(lines):
                logger.warning(
                    "%s: line %d is not a line of metrics; it is deleted", self.metrics, number
                )
        write_whole(self.metrics, "".join(f"{line}\n" for line in kept))
        return len(kept)


def _is_before(text: bytes, step: int, by_stage: Mapping[int, int]) -> bool | None:
    """Whether the line `text` was written before the checkpoint of `step`; None for a text that is
    not a line. Evaluation and probe batch after `step` come after the checkpoint."""
    try:
        line = json.loads(text.decode())
        kind, at, stage = line["kind"], line["step"], line["stage"]
    except (ValueError, LookupError, TypeError):
        return None
    if (
        kind not in ("train", "test", "probe")
        or type(at) is not int
        or type(stage) not in (int, str)
    ):
        return None
    return at <= by_stage.get(stage, step) if kind == "train" else at < step


def default_path() -> Path:
    """`runs/<date>_<time>`, with a number appended if the directory exists."""
    stem = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}_{count}"
    return path
