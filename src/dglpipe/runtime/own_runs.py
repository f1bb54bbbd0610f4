"""The record of the runs with plug-ins that this user has trained on this machine.

It is outside all run directories, so a run directory cannot add to it. A line belongs to one
`config.yaml`: its SHA-256, and the files of the plug-ins that the run imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from dglpipe.config import Config
from dglpipe.config.instantiate import split_target
from dglpipe.config.targets import named_targets
from dglpipe.runtime.module_files import module_files


def record_path() -> Path:
    """`dglpipe/own_runs.jsonl` in `XDG_STATE_HOME`, which is `~/.local/state` by default.

    Raises:
        RuntimeError: the user has no home directory.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "dglpipe" / "own_runs.jsonl"


def record_own(config: Config, text: str) -> None:
    """Records a run that the user starts. Does nothing for a run without plug-ins.

    If the record cannot be written, a warning says so, and the run counts as foreign.

    Args:
        text: content of the `config.yaml` of the run.
    """
    paths = {split_target(target, key)[0] for key, target in named_targets(config).items()}
    if not paths:
        return
    files = {file for path in paths for file in (module_files(path) or {}).values()}
    line = {"config": _digest(text), "files": sorted(str(file) for file in files if file)}
    try:
        _append(record_path(), json.dumps(line) + "\n")
    except (OSError, RuntimeError) as error:
        sys.stderr.write(
            f"dglpipe: warning: the run is not recorded as yours ({error}): evaluate, export and "
            "load will need trust=NAME for its plug-ins\n"
        )


def files_of_own_run(text: str) -> set[Path]:
    """The files of the plug-ins of a recorded run; empty for a run that is not recorded.

    A record that other users can change counts as empty.
    """
    try:
        path = record_path()
        owner = path.stat()
        if owner.st_uid != os.geteuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return set()
        lines = path.read_text().splitlines()
    except (OSError, RuntimeError):
        return set()
    digest = _digest(text)
    return {file for line in lines for file in _files(line, digest)}


def _files(line: str, digest: str) -> Iterator[Path]:
    """The files in one line of the record, if it belongs to `digest`."""
    # On a full disk, a line may be cut off.
    with contextlib.suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        if entry["config"] == digest:
            yield from map(Path, entry["files"])


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
        file.write(line)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
