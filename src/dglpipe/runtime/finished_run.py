"""A finished run whose files have been compared with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dglpipe.config import Config
from dglpipe.data import DataInfo
from dglpipe.errors import RunDirError
from dglpipe.manifest import DamageError, FileEntry, read_suspect
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.pipeline.weights import check_stage, load, sha256
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.summary import CONFIG_SHA256
from dglpipe.runtime.trust_words import Words


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """Configuration and data set of a finished run, and access to its weights.

    Attributes:
        config: without `model.weights`, whose file may no longer exist.
        data: properties of the data set of training.
    """

    config: Config
    data: DataInfo
    _run_dir: RunDir
    _stages: tuple[Mapping[str, Any], ...]

    @classmethod
    def open(cls, path: Path, trust: Words = ()) -> FinishedRun:
        """Reads configuration and manifest of the run in `path`.

        Args:
            trust: names and files of the plug-ins that may be imported.

        Raises:
            RunDirError: not the directory of a finished run, a file is damaged, or a plug-in
                may not be imported.
        """
        run_dir = RunDir(path)
        config = run_dir.finished_config(trust)
        try:
            content, is_whole = read_suspect(run_dir.manifest)
            if not is_whole:
                _name_damage(run_dir, content)
            stages = tuple(content["stages"])
            known = content["data"]
            data = DataInfo.from_json(known)
            _check_config(run_dir, content[CONFIG_SHA256])
        except DamageError as error:
            raise RunDirError.damaged(error.path, error.reason) from error
        except KeyError as error:
            raise RunDirError.damaged(run_dir.manifest, f"no key {error}") from error
        except (ValueError, TypeError) as error:
            raise RunDirError.damaged(run_dir.manifest, error) from error
        sizes = (data.channels, data.height, data.width)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise RunDirError.damaged(run_dir.manifest, f"images of shape {sizes}")
        return cls(config, data, run_dir, stages)

    def weights(self, stage: int, module: StageModule) -> dict[str, Tensor]:
        """The final weights of a stage, by key.

        Args:
            module: the stage, on any device, including meta; `module` is not changed.

        Raises:
            RunDirError: the file does not match the manifest or the stage.
        """
        manifest, path = self._run_dir.manifest, self._run_dir.final(stage)
        found = [entry for entry in self._stages if entry.get("stage") == stage]
        if len(found) != 1:
            raise RunDirError.damaged(manifest, f"{len(found)} entries of stage {stage}")
        try:
            entry = FileEntry.parse(manifest, found[0])
            if entry.name != path.name:
                raise DamageError(manifest, f"stage {stage}: got {entry.name} for {path.name}")
            content = entry.read(path.parent)
        except DamageError as error:
            raise RunDirError.damaged(error.path, error.reason) from error
        tensors = check_stage(path, content, module)
        if sha256(tensors) != found[0].get("weights_sha256"):
            raise RunDirError.damaged(manifest, f"{path.name}: weights_sha256 does not match")
        return tensors


def _check_config(run_dir: RunDir, wanted: object) -> None:
    digest = hashlib.sha256(run_dir.config.read_bytes()).hexdigest()
    if digest != wanted:
        text = f"sha256: got {digest}, {CONFIG_SHA256} in {run_dir.manifest} is {wanted}"
        raise DamageError(run_dir.config, text)


def _name_damage(run_dir: RunDir, content: Mapping[str, Any]) -> None:
    """Raises DamageError for a manifest with another content than was written: names the first
    entry that does not match its file, if there is one."""
    folder = run_dir.manifest.parent
    for entry in content["stages"]:
        parsed = FileEntry.parse(run_dir.manifest, entry)
        try:
            parsed.check(folder)
            digest = sha256(load(folder / parsed.name))
        except (DamageError, OSError, ValueError) as error:
            text = f"the entry of {parsed.name}, or that file, is damaged: {error}"
            raise DamageError(run_dir.manifest, text) from error
        if digest != entry.get("weights_sha256"):
            got = entry.get("weights_sha256")
            text = f"{parsed.name}: weights_sha256: got {got}, the file has {digest}"
            raise DamageError(run_dir.manifest, text)
    _check_config(run_dir, content[CONFIG_SHA256])
    raise DamageError(run_dir.manifest, "its content is not the one that was written")
