"""Checkpoints of the stages of one process. A killed run that resumes ends with the same weights as
an uninterrupted run.

The process copies the state of its stages and goes on. A thread converts the copy to bytes,
computes the SHA-256, writes the files, and reports them to the process that records the run,
which writes the manifest when all processes have reported. Stages do not wait for each other.

Random state and learning rate are functions of the step, and the batch schedule is a function of
the configuration, so a file contains only weights, optimizer, loss scaler, and the sums of the next
line of `metrics.jsonl`. A simulation of asynchronous learning adds its buffers, and methods with
messages down the chain add the batches that a stage keeps and the messages that are under way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dglpipe.config import Config
from dglpipe.files import write_bytes, writing
from dglpipe.manifest import FileEntry
from dglpipe.pipeline.stage import Stage
from dglpipe.pipeline.state_file import Snapshot, snapshot
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.checkpoint_folder import CheckpointFolder
from dglpipe.runtime.resume import identity

Report = Callable[[int, Sequence[Mapping[str, Any]]], None]
"""Receives the step of a checkpoint and the entries of the files of this process."""
Parts = Mapping[str, Mapping[int, Any]]
"""Name -> stage -> further state: tensors, numbers, texts, dicts and lists."""


class Checkpoints:
    """Writes and reads the checkpoint files of the stages of one process.

    Args:
        path: the folder of all checkpoints.
        replica: r.
    """

    def __init__(self, path: Path, config: Config, layout: Layout, replica: int) -> None:
        self._folder = CheckpointFolder(path, identity(config), layout)
        self._config = config
        self._replica = replica
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, stages: Sequence[Stage], parts: Parts, report: Report) -> None:
        """Copies the state of `stages` after `step`, and begins to write it. First waits for the
        checkpoint before.

        Args:
            parts: further state.
            report: called by the thread when the files are on the disk.

        Raises:
            StorageError: the checkpoint before could not be written.
            TypeError: `parts` contains a value that cannot be saved.
        """
        self.drain()
        copies = {stage.index: snapshot(_state(stage, parts)) for stage in stages}
        self._writing = self._thread.submit(self._write, step, copies, report)

    def check(self) -> None:
        """Raises the error of the thread, if it has failed; does not wait.

        Raises:
            StorageError: the checkpoint could not be written.
        """
        if self._writing is not None and self._writing.done():
            self.drain()

    def drain(self) -> None:
        """Returns when the last checkpoint has been written and reported.

        Raises:
            StorageError: the checkpoint could not be written.
        """
        if self._writing is not None:
            result, self._writing = self._writing, None
            result.result()

    def _write(self, step: int, copies: dict[int, Snapshot], report: Report) -> None:
        # Not the folders above: a run directory that was deleted is an error.
        with writing(self._folder.path):
            self._folder.path.mkdir(exist_ok=True)
        files = []
        while copies:
            stage, copied = copies.popitem()
            content = copied.to_bytes(self._folder.metadata(step, stage, self._replica))
            del copied
            path = self._folder.file(step, stage, self._replica)
            write_bytes(path, content)
            files.append(FileEntry.of(path.name, content).to_json())
        report(step, files)

    def complete(self, step: int, files: Sequence[Mapping[str, Any]], lines: int = 0) -> None:
        """Makes a checkpoint complete, when all processes have reported.

        Args:
            files: the entries of the files of all processes.
            lines: lines of `metrics.jsonl` on the disk.
        """
        self._folder.complete(step, files, self._config.checkpoint.keep, lines)

    def lines(self, step: int) -> int:
        """Lines of `metrics.jsonl` when the checkpoint of `step` was complete; 0 for step 0."""
        return self._folder.lines(step) if step else 0

    def newest(self) -> int:
        """Step of the newest intact checkpoint; 0 if there is none or resume=never.

        Raises:
            DamagedError, RunDirError: see `CheckpointFolder.newest`.
        """
        return self._folder.newest() if self._config.resume == "auto" else 0

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`."""
        self._folder.drop_after(step)

    def restore(
        self, step: int, stages: Sequence[Stage], file: FileEntry | None = None
    ) -> dict[str, dict[int, Any]]:
        """Loads the state of `stages` after `step`.

        Args:
            file: the entry of the file of the only stage, if the checkpoint may be incomplete.

        Returns:
            The further state, as given to `save`.

        Raises:
            DamagedError: a file does not match its entry.
        """
        parts: dict[str, dict[int, Any]] = {}
        for stage in stages:
            state = self._folder.read(step, stage.index, self._replica, file)
            stage.module.load_state_dict(state["learner"], strict=True)
            stage.optimizer.load_state_dict(state["optimizer"])
            if stage.scaler is not None:
                stage.scaler.load_state_dict(state["scaler"])
            if stage.lookahead is not None:
                stage.lookahead.restore(state["lookahead"])
            for name, value in state["parts"].items():
                parts.setdefault(name, {})[stage.index] = value
        return parts


def _state(stage: Stage, parts: Parts) -> dict[str, Any]:
    return {
        "learner": stage.module.state_dict(),
        "optimizer": stage.optimizer.state_dict(),
        "scaler": stage.scaler.state_dict() if stage.scaler is not None else None,
        "lookahead": stage.lookahead.state() if stage.lookahead is not None else None,
        "parts": {name: by_stage.get(stage.index) for name, by_stage in parts.items()},
    }
