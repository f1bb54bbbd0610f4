"""The argument `trust`: what the reader of a run allows to be imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dglpipe.errors import UserError

Words = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
"""Names of distributions or modules, and files."""


@dataclass(frozen=True)
class Trust:
    """What the reader of a run allows."""

    names: frozenset[str]
    """Names of distributions, and of modules with all that they contain."""
    files: frozenset[Path]

    def names_module(self, path: str, file: Path | None) -> bool:
        """Whether a name allows `file` for the import of the module `path`.

        The name is that of the module, of a package that contains the module, or of the
        distribution that has installed `file`. The packages that contain a trusted module are
        executed before the module, so they are allowed with it.
        """
        return any(is_below(path, name) or _installs(name, file) for name in self.names)


def parse_trust(words: Words) -> Trust:
    """Reads `trust=`: names and files, as a sequence or as a string `a,b` or `[a,b]`.

    Raises:
        UserError: a word is neither a name nor an existing file.
    """
    allowed = "names of distributions or modules, and existing files: trust=my_package,my_file.py"
    names, files = set(), set()
    for word in _separate(words):
        if _is_file(word):
            files.add(Path(word).expanduser().resolve())
        elif re.fullmatch(r"\w[\w.-]*", word) and not word.endswith(_SUFFIXES):
            names.add(word)
        else:
            raise UserError(f"trust: got {word!r}; allowed: {allowed}")
    return Trust(frozenset(names), frozenset(files))


def _separate(words: Words) -> list[str]:
    if isinstance(words, str):
        text = words.strip("[] ")
        words = [text] if _is_file(text) else text.split(",") if text else []
    try:
        parts = [words] if isinstance(words, os.PathLike) else words
        return [os.fspath(part).strip(" '\"") for part in parts]
    except TypeError:
        raise UserError(f"trust: got {words!r}; allowed: a sequence of names and files") from None


_SUFFIXES = tuple(all_suffixes())
"""Endings of the files that Python imports."""


def _is_file(word: str) -> bool:
    """Whether `word` is a file, not the name of a module beside a file of that name."""
    looks_like_file = os.sep in word or word.endswith(_SUFFIXES)
    return looks_like_file and Path(word).expanduser().is_file()


def _installs(name: str, file: Path | None) -> bool:
    """Whether `file` belongs to the installed distribution `name`."""
    try:
        found = distribution(name)
    except (PackageNotFoundError, ValueError):
        return False
    root = Path(str(found.locate_file(""))).resolve()
    return any(file == root / one for one in found.files or ())


def is_below(path: str, package: str) -> bool:
    """Whether the module `path` is `package` or a part of it."""
    return path == package or path.startswith(f"{package}.")
