"""Exceptions of dglpipe.

A message names the key, the value, the allowed values and the fix.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_PLACEHOLDERS = {"root": "DIR", "target": "package.module:builder", "name": "NAME"}
"""Last part of a key -> what stands for its value in messages."""


_LONGEST = 300
"""Characters of a value in a message."""


def clipped(text: str) -> str:
    """`text`; a long text is cut in the middle."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2 - 10
    return f"{text[:half]} ... {text[-half:]} ({len(text)} characters)"


class DglpipeError(Exception):
    """Base class of all errors that dglpipe raises."""


class UserError(DglpipeError, ValueError):
    """An error in the user's input; the message contains the fix."""


class ConfigError(UserError):
    """A setting with a value that is not allowed.

    Args:
        key: configuration key, for example `pipeline.stages`.
        got: rejected value.
        allowed: description of the allowed values.
        hint: how to fix the setting, if `allowed` does not say so.
    """

    def __init__(self, key: str, got: object, allowed: str, hint: str = "") -> None:
        self.key, self.got, self.allowed, self.hint = key, got, allowed, hint
        text = f"{key}: got {clipped(repr(got))}; allowed: {allowed}"
        super().__init__(f"{text}. {hint}" if hint else text)

    @classmethod
    def required(cls, key: str) -> ConfigError:
        """The error for a setting that has no default and was not given."""
        value = _PLACEHOLDERS.get(key.rpartition(".")[2], "VALUE")
        error = cls(key, None, value)
        error.args = (f"{key}: required: give {key}={value}",)
        return error

    def below(self, group: str) -> ConfigError:
        """The same error for the key `group.key`."""
        return ConfigError(f"{group}.{self.key}", self.got, self.allowed, self.hint)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class DataError(UserError):
    """A data set that is missing, empty, unreadable or inconsistent."""


class RunDirError(UserError):
    """A run directory that is in use, already finished, or not a run directory."""

    @classmethod
    def damaged(cls, path: Path, reason: object) -> RunDirError:
        """The error for a missing or corrupt file of a finished run."""
        return cls(
            f"run: {path} cannot be read ({reason}); restore the file from a copy, or train again"
        )


class DeviceError(UserError):
    """A device or backend that this machine does not have."""


class ConsistencyError(DglpipeError):
    """Processes of one run with different configuration, data or code."""


class LoadingError(DglpipeError):
    """The loss of a loading process: it ended, failed or is too slow, or it has no memory."""


class LinkError(DglpipeError):
    """A received message that differs from the message in the batch schedule."""


class DamagedError(DglpipeError):
    """A run that cannot be resumed because no checkpoint is intact; nothing was trained."""


class PeerLostError(DglpipeError):
    """The consequence of an earlier failure of another process; usually the loss of the process."""


class RejoinError(DglpipeError):
    """A stage that cannot be started again alone: a neighbour has finished, the last evaluation has
    begun, or its file in the checkpoint is damaged."""


class NonFiniteError(UserError):
    """A loss, weight, buffer or state of the optimizer that is NaN or infinite."""


class NonFinitePeerError(NonFiniteError, PeerLostError):
    """As `NonFiniteError`, after values of another process became NaN or infinite."""


class RunFailedError(DglpipeError):
    """A run that failed after its start; the message begins with the first failure.

    Attributes:
        repeats: whether a restart would fail in the same way.
    """

    repeats = False


class StorageError(RunFailedError):
    """A file of a run that cannot be written; the message is the reason and the path.

    Args:
        path: the file.
        error: the error of the failed call.

    Attributes:
        hint: what to do.
    """

    def __init__(self, path: str | os.PathLike[str], error: OSError) -> None:
        reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"{reason}: {os.fspath(path)}")
        self.hint = _REMEDIES.get(error.errno or 0, "check the disk of this path")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


_REMEDIES = {
    errno.ENOSPC: "free space on this disk, or give another run_dir",
    errno.EDQUOT: "free space in the quota of this disk, or give another run_dir",
    errno.EROFS: "mount this disk for writing, or give another run_dir",
    errno.EACCES: "permit this user to write there, or give another run_dir",
    errno.EPERM: "permit this user to write there, or give another run_dir",
    errno.ENOENT: "the folder was deleted or moved; put it back, or give another run_dir",
    errno.ESTALE: "the folder was deleted or moved; put it back, or give another run_dir",
}
"""`errno` of a failed write -> what to do."""


class PreemptedError(DglpipeError):
    """The end of a run by a signal, after a checkpoint.

    Args:
        step: step of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(
            f"preempted after step {step}, with a checkpoint; the same command with resume=auto "
            "continues from there"
        )


def _rebuild(
    kind: type[DglpipeError], args: tuple[object, ...], state: dict[str, object]
) -> DglpipeError:
    """Unpickles an error without calling the constructor, which has other arguments."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
