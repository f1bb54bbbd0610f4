"""Atomic writing of files, and errors that name the file.

All files of a run are written here or by appending, so that their permissions follow the umask.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dglpipe.errors import StorageError

_PART = re.compile(r"\.(?P<name>.+)\.\d+")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translates an OSError of the body to an error that names `path`.

    Raises:
        StorageError: the body raised an OSError, which is the cause of this error.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a part file for the body to write; the part file then replaces `path`.

    Readers see the old content or all of the new content, also after a power failure. Creates the
    parent directory, but not the directories above the parent. Deletes the part file if the body
    fails: on a full disk, this leaves room for the report of the failure.

    Raises:
        StorageError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Writes the entries of a directory to the disk, so that a rename survives a loss of power."""
    with writing(path):
        folder = os.open(path, os.O_RDONLY)
        try:
            # Some network file systems do not support it.
            with contextlib.suppress(OSError):
                os.fsync(folder)
        finally:
            os.close(folder)


def name_of_part(path: Path) -> str | None:
    """The name of the file that the part file `path` was to replace; None for other files."""
    found = _PART.fullmatch(path.name)
    return found["name"] if found else None


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as `replacing` does."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file as `replacing` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, as `replacing` does."""
    write_whole(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def try_write_json(path: Path, value: Any) -> bool:
    """As `write_json`; returns whether the file was written, instead of raising StorageError."""
    try:
        write_json(path, value)
    except StorageError:
        return False
    return True


def finite(value: Any) -> Any:
    """Replaces NaN and infinities in `value` by None, because JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
