"""Manifests: JSON files with name, size and SHA-256 of other files, and of their own content.

A manifest is written after the files that it lists. A set of files is therefore complete exactly
when its manifest exists and matches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dglpipe.files import write_json

SEAL = "manifest_sha256"
"""Key of the SHA-256 of the other keys: of their JSON with sorted keys, without spaces."""
CHUNK = 1 << 20
"""Bytes that a check holds in memory."""
T = TypeVar("T")


class DamageError(Exception):
    """A file that does not match its manifest.

    Args:
        path: the file.
        reason: the entry of the manifest, what was found, what was expected.
    """

    def __init__(self, path: Path, reason: object) -> None:
        self.path, self.reason = path, str(reason)
        super().__init__(f"{path}: {self.reason}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """The entry of one file in a manifest.

    Attributes:
        name: name of the file, in the folder of the manifest.
        size: bytes.
        sha256: SHA-256 of the bytes, in hexadecimal digits.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes) -> FileEntry:
        """The entry of a file with this content."""
        return cls(name, len(content), hashlib.sha256(content).hexdigest())

    @classmethod
    def parse(cls, manifest: Path, entry: Any) -> FileEntry:
        """The entry from the JSON of a manifest; further keys are allowed.

        Raises:
            DamageError: a key is missing or has another type.
        """
        keys = ("file", "size", "sha256")
        values = [entry.get(key) for key in keys] if isinstance(entry, Mapping) else entry
        if not isinstance(entry, Mapping) or [type(one) for one in values] != [str, int, str]:
            raise DamageError(manifest, f"got {values!r} where an entry has {', '.join(keys)}")
        return cls(*values)

    def to_json(self) -> dict[str, Any]:
        """The entry as `parse` reads it."""
        return {"file": self.name, "size": self.size, "sha256": self.sha256}

    def read(self, folder: Path) -> bytes:
        """The content of the file, after its size and SHA-256 have been compared.

        Raises:
            DamageError: the file is missing, unreadable or different.
        """
        path = folder / self.name
        content = self._try(path, path.read_bytes)
        self._compare(path, len(content), hashlib.sha256(content).hexdigest())
        return content

    def check(self, folder: Path) -> None:
        """Compares the file as `read` does, without holding it in memory.

        Raises:
            DamageError: as `read`.
        """
        path = folder / self.name
        self._compare(path, *self._try(path, lambda: _measure(path)))

    def _try(self, path: Path, read: Callable[[], T]) -> T:
        if {"/", "\0"} & {*self.name} or self.name in ("", ".", ".."):
            raise DamageError(path, f"got {self.name!r} where the name of a file belongs")
        try:
            return read()
        except FileNotFoundError:
            raise DamageError(path, "the file is missing") from None
        except OSError as error:
            raise DamageError(path, f"cannot be read: {error.strerror}") from error

    def _compare(self, path: Path, size: int, digest: str) -> None:
        if size != self.size:
            raise DamageError(path, f"size: got {size} bytes, the manifest has {self.size}")
        if digest != self.sha256:
            raise DamageError(path, f"sha256: got {digest}, the manifest has {self.sha256}")


def beside(path: Path) -> Path:
    """The manifest of a single file: `FILE.manifest.json`."""
    return path.with_name(f"{path.name}.manifest.json")


def _measure(path: Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            size += len(part)
            digest.update(part)
    return size, digest.hexdigest()


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a manifest, atomically, with the SHA-256 of its own content."""
    write_json(path, {**content, SEAL: _seal(content)})


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest, without its own SHA-256.

    Raises:
        DamageError: the manifest is missing, unreadable or different from what was written.
    """
    content, is_whole = read_suspect(path)
    if not is_whole:
        raise DamageError(path, f"{SEAL}: the content is not the one that was written")
    return content


def read_suspect(path: Path) -> tuple[dict[str, Any], bool]:
    """As `read_manifest`, for a reader that can name the damaged entry.

    Returns:
        The content, and whether it is the one that was written.

    Raises:
        DamageError: the manifest is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamageError(path, "the file is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamageError(path, error) from error
    if not isinstance(content, dict):
        raise DamageError(path, f"got {type(content).__name__} where a JSON object belongs")
    seal = content.pop(SEAL, None)
    return content, seal == _seal(content)


def _seal(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
