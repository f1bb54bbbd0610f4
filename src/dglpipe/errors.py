"""The exceptions that a user of dglpipe can meet."""

from __future__ import annotations

from pathlib import Path

_PLACEHOLDERS = {"root": "DIR", "target": "package.module:builder", "name": "NAME"}
"""Last part of a key -> what stands for its value in messages."""


class DglpipeError(Exception):
    """Base of every error that dglpipe raises on purpose."""


class UserError(DglpipeError, ValueError):
    """A mistake in what the user gave; the message says how to mend it."""


class ConfigError(UserError):
    """A setting that cannot be used.

    Args:
        key: the configuration key, `pipeline.stages` for example.
        got: the value that came.
        allowed: what would have been accepted, in words.
        hint: what to do, if that does not follow from `allowed`.
    """

    def __init__(self, key: str, got: object, allowed: str, hint: str = "") -> None:
        self.key, self.got, self.allowed, self.hint = key, got, allowed, hint
        text = f"{key}: got {got!r}; allowed: {allowed}"
        super().__init__(f"{text}. {hint}" if hint else text)

    @classmethod
    def required(cls, key: str) -> ConfigError:
        """The error for a setting that has no default and was not given."""
        value = _PLACEHOLDERS.get(key.rpartition(".")[2], "VALUE")
        error = cls(key, None, value)
        error.args = (f"{key}: required: give {key}={value}",)
        return error

    def below(self, group: str) -> ConfigError:
        """The same mistake, for a key that lies in `group`."""
        return ConfigError(f"{group}.{self.key}", self.got, self.allowed, self.hint)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


class DataError(UserError):
    """A data set that cannot be used: missing, empty, unreadable or inconsistent."""


class RunDirError(UserError):
    """A run directory that is in use, finished, or not a run directory at all."""

    @classmethod
    def damaged(cls, path: Path, reason: object) -> RunDirError:
        """For a file of a finished run that is gone, or holds something else."""
        return cls(f"run: {path} cannot be read ({reason}); the run has lost its results")


class DeviceError(UserError):
    """A device or backend that this machine does not have."""


class ConsistencyError(DglpipeError):
    """The processes of a run disagree about configuration, data or code."""


class LinkError(DglpipeError):
    """A message that is not the one that the stream plan announced."""


class PeerLostError(DglpipeError):
    """A neighbour is gone: a consequence of some other failure, never its cause."""


class RunFailedError(DglpipeError):
    """A run that started and did not finish; the message begins with the first cause."""


def _rebuild(
    kind: type[DglpipeError], args: tuple[object, ...], state: dict[str, object]
) -> DglpipeError:
    """Makes an error with its own constructor picklable (it crosses process borders)."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error
