"""Decides whether the plug-ins that a run directory names may be imported.

A run directory may come from somebody else, and the import of a module executes it. The decision
comes before any import.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dglpipe.config import Config
from dglpipe.config.builder_kind import refuse_standard_library
from dglpipe.config.instantiate import import_plug_in, split_target
from dglpipe.config.targets import named_targets
from dglpipe.errors import ConfigError, RunDirError
from dglpipe.runtime.module_files import module_files
from dglpipe.runtime.own_runs import files_of_own_run
from dglpipe.runtime.trust_words import Trust, Words, is_below, parse_trust

LIBRARIES: dict[str, tuple[str, ...]] = {
    "model": ("torch.nn", "torchvision.models"),
    "head": ("torch.nn", "torchvision.models"),
    "loss": ("torch.nn",),
    "method": ("dglpipe.methods",),
    "data": (),
}
"""Setting -> modules that are always allowed: their builders give objects of its kind only."""


def require_trusted(config: Config, file: Path, text: str, words: Words) -> None:
    """Checks every target of the run in `config` before it is imported.

    A module is allowed if it is in `LIBRARIES`, if `words` name it, or if the run is the user's own
    (`own_runs`) and the file is the same as in training. The packages that contain the module are
    executed too, and have to be allowed like the module. A name in `words` allows no file in
    the run directory.

    Args:
        file: the `config.yaml` of the run.
        text: its content.

    Raises:
        RunDirError: a target is not allowed; the message names it, its file, and the fix.
        UserError: `words` cannot be parsed.
    """
    trust = parse_trust(words)
    try:
        targets = named_targets(config)
        paths = {key: split_target(target, key)[0] for key, target in targets.items()}
        for key, path in paths.items():
            refuse_standard_library(path, targets[key], key, _setting(key))
    except ConfigError as error:
        raise RunDirError(f"run: {file}: {error}") from error
    needed = {key: path for key, path in paths.items() if not _is_library(key, path)}
    own = files_of_own_run(text) if needed else set()
    foreign = {}
    for key, path in needed.items():
        what = f"run: {file}: {key}: got {targets[key]!r}"
        if not own.issuperset(_allowed_files(what, path, file.parent, trust, own)):
            foreign[key] = path
    if any(module_files(path) is None for path in needed.values()):
        sys.path.append(str(Path.cwd()))
    if not foreign:
        return
    with _sources_only():
        for key, path in foreign.items():
            import_plug_in(path, targets[key], key)


@contextlib.contextmanager
def _sources_only() -> Iterator[None]:
    """Imports read no compiled copies in `__pycache__`: they may differ from the files that the
    reader has read."""
    before = sys.pycache_prefix, sys.dont_write_bytecode
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix, sys.dont_write_bytecode = empty, True
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = before


def _allowed_files(
    what: str, path: str, run_dir: Path, trust: Trust, own: set[Path]
) -> list[Path | None]:
    """The files that the import of `path` executes.

    Raises:
        RunDirError: one of the files is not allowed; the message begins with `what`.
    """
    top = path.partition(".")[0]
    files = module_files(path, [str(Path.cwd())])
    if files is None:
        raise RunDirError(
            f"{what}; there is no module {path!r}. Add its folder to PYTHONPATH, or install it; "
            f"if you trust it, give trust={top}"
        )
    for name, file in files.items():
        inside = file is not None and file.is_relative_to(run_dir.resolve())
        if file in trust.files or file in own or (not inside and trust.names_module(path, file)):
            continue
        raise RunDirError(
            f"{what}; allowed: what trust= names, and in a run that you trained on this machine "
            f"the files used in training. This would execute {file or name}. Read it; if you trust "
            f"it, give trust={file if inside else top}"
        )
    return [*files.values()]


def _setting(key: str) -> str:
    """The setting to which the target `key` belongs: a key of `LIBRARIES`."""
    return key.split(".")[-2]


def _is_library(key: str, path: str) -> bool:
    return any(is_below(path, name) for name in LIBRARIES[_setting(key)])
