"""The folder of all checkpoints of a run: names, manifests, verification.

    checkpoints/step_00000100/stage_0.safetensors  stage_1.safetensors  ...  manifest.json

The manifest is written last, by one process, so a checkpoint without a manifest is incomplete.
Run and step are in the manifest; run, step, stage and replica are in the metadata of each file. So
a file of another run or place is found even if manifest and hash fit.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dglpipe.errors import DamagedError, RunDirError
from dglpipe.files import sync_folder, writing
from dglpipe.manifest import DamageError, FileEntry, read_manifest, write_manifest
from dglpipe.pipeline.state_file import read_state
from dglpipe.pipeline.topology import Layout

NAME = re.compile(r"step_(\d{8,})")
LINES = "metrics_lines"

logger = logging.getLogger("dglpipe")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """The checkpoints of one run.

    Attributes:
        path: the folder of all checkpoints.
        run: identity of the run: its files and manifests carry it.
        layout: stages and replicas. The names of the files do not depend on the processes, so a
            run can resume on another number of processes.
    """

    path: Path
    run: str
    layout: Layout

    def file(self, step: int, stage: int, replica: int) -> Path:
        """The file of one stage. Each replica has its own, because batch norm statistics differ."""
        copy = f"_{replica}" if self.layout.replicas > 1 else ""
        return self._of(step) / f"stage_{stage}{copy}.safetensors"

    def manifest(self, step: int) -> Path:
        """The manifest of a checkpoint."""
        return self._of(step) / "manifest.json"

    def metadata(self, step: int, stage: int, replica: int) -> dict[str, str]:
        """Run and place of a file, for its metadata."""
        place = {"step": step, "stage": stage, "replica": replica}
        return {"run": self.run, **{key: str(value) for key, value in place.items()}}

    def complete(
        self, step: int, files: Sequence[Mapping[str, Any]], keep: int, lines: int = 0
    ) -> None:
        """Writes the manifest of a checkpoint whose files are on the disk, and deletes the
        checkpoints older than the last `keep` complete ones.

        Args:
            lines: lines of `metrics.jsonl` on the disk.
        """
        ordered = sorted(files, key=lambda entry: str(entry["file"]))
        content = {**self._header(step), LINES: lines, "files": ordered}
        write_manifest(self.manifest(step), content)
        sync_folder(self.path)
        kept = self.steps()[-keep:]
        for old in self._all():
            if old < kept[0]:
                shutil.rmtree(self._of(old), ignore_errors=True)

    def lines(self, step: int) -> int:
        """Lines of `metrics.jsonl` when a verified checkpoint was complete."""
        return int(read_manifest(self.manifest(step))[LINES])

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in ascending order."""
        return [step for step in self._all() if self.manifest(step).is_file()]

    def newest(self) -> int:
        """Step of the newest checkpoint whose files all match; 0 if there is no checkpoint.

        Warns of every damaged checkpoint that is newer.

        Raises:
            DamagedError: there are complete checkpoints, and each is damaged.
            RunDirError: the checkpoints are of a version that wrote other files.
        """
        found: list[DamageError] = []
        for step in reversed(self.steps()):
            damage = self.damage(step)
            if not damage:
                for error in found:
                    logger.warning("%s. The checkpoint of step %d is used instead", error, step)
                return step
            found += damage
        if found:
            listed = "\n".join(f"  {error}" for error in found)
            raise DamagedError(
                f"run_dir: no checkpoint in {self.path} is intact:\n{listed}\n"
                f"To train from the beginning, delete {self.path} or give another run_dir"
            )
        for old in self.path.glob("step_*/stage_*.pt"):
            raise RunDirError(
                f"run_dir: {old} is a checkpoint of an earlier version, which this version does "
                f"not read. To train from the beginning, delete {self.path} or give another run_dir"
            )
        return 0

    def damage(self, step: int) -> list[DamageError]:
        """What is wrong with a checkpoint; empty: all files match."""
        try:
            entries = self._entries(step)
        except DamageError as error:
            return [error]
        found = []
        parts = itertools.product(range(self.layout.stages), range(self.layout.replicas))
        for stage, replica in parts:
            path = self.file(step, stage, replica)
            try:
                entry = self._entry(entries, step, path)
                entry.check(path.parent)
                with safe_open(path, "pt") as opened:
                    self._require_place(path, opened.metadata() or {}, step, stage, replica)
            except DamageError as error:
                found.append(error)
            except (OSError, SafetensorError) as error:
                found.append(DamageError(path, error))
        return found

    def read(self, step: int, stage: int, replica: int, entry: FileEntry | None = None) -> Any:
        """The state in the file of one stage, after the file has been compared with `entry`.

        Args:
            entry: None: the entry in the manifest.

        Raises:
            DamagedError: the file does not match.
        """
        path = self.file(step, stage, replica)
        try:
            if entry is None:
                entry = self._entry(self._entries(step), step, path)
            content = entry.read(path.parent)
            metadata, state = read_state(content)
            self._require_place(path, metadata, step, stage, replica)
        except DamageError as error:
            raise DamagedError(f"run_dir: {error}") from error
        except ValueError as error:
            raise DamagedError(f"run_dir: {path}: {error}") from error
        return state

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints after `step`, which are incomplete or damaged: a resumed run
        writes them again."""
        for later in self._all():
            if later > step:
                with writing(self._of(later)):
                    shutil.rmtree(self._of(later))

    def _entries(self, step: int) -> dict[str, FileEntry]:
        """The entries of the files in the manifest of `step`, by name.

        Raises:
            DamageError: the manifest is damaged, or of another run or step.
        """
        path = self.manifest(step)
        content = read_manifest(path)
        for key, value in self._header(step).items():
            if content.get(key) != value:
                text = f"{key}: got {content.get(key)!r}, this checkpoint has {value!r}"
                raise DamageError(path, f"the manifest is of another run or step: {text}")
        entries = [FileEntry.parse(path, entry) for entry in content.get("files", ())]
        return {entry.name: entry for entry in entries}

    def _entry(self, entries: Mapping[str, FileEntry], step: int, path: Path) -> FileEntry:
        if path.name not in entries:
            raise DamageError(self.manifest(step), f"there is no entry for {path.name}")
        return entries[path.name]

    def _require_place(
        self, path: Path, metadata: Mapping[str, str], step: int, stage: int, replica: int
    ) -> None:
        """Raises DamageError if a file was written for another place or by another run."""
        for key, value in self.metadata(step, stage, replica).items():
            if metadata.get(key) != value:
                text = f"{key}: got {metadata.get(key)}, this checkpoint has {value}"
                raise DamageError(path, f"the file is of another run or place: {text}")

    def _header(self, step: int) -> dict[str, Any]:
        sizes = {"stages": self.layout.stages, "replicas": self.layout.replicas}
        return {"run": self.run, "step": step, **sizes}

    def _of(self, step: int) -> Path:
        return self.path / f"step_{step:08d}"

    def _all(self) -> list[int]:
        """Steps of all checkpoints, complete or not, in ascending order."""
        names = [NAME.fullmatch(item.name) for item in self.path.glob("step_*")]
        return sorted(int(name[1]) for name in names if name)
