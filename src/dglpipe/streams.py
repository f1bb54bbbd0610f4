"""Standard output and standard error that never fail: a run goes on when its reader has gone.

A reader can close a pipe (`dglpipe train | head -1`), a terminal can vanish, and a file descriptor
can be closed from the start (`dglpipe train >&-`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

READER_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF)
"""Errors of a closed pipe or socket, of a vanished terminal, and of a closed file descriptor."""


class Output(io.FileIO):
    """A file descriptor that drops all further output after the first error.

    Attributes:
        error: the first error; None: no error.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def shield_streams() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams on an `Output`.

    A closed file descriptor 0, 1 or 2 is opened on the null device. Otherwise the next file or
    socket would get the number, and with it the text for the stream. Characters that the encoding
    of a stream lacks are escaped. Streams that other code has replaced stay as they are.
    """
    for number in range(3):
        if _is_closed(number):
            # A new file gets the lowest free number. Child processes inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream: TextIO | None = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _shielded(number, stream))


def output_error(stream: TextIO) -> OSError | None:
    """The error that `stream` dropped, except that its reader has gone; None: no error."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, Output) else None
    return None if error is None or error.errno in READER_GONE else error


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


def _shielded(number: int, old: TextIO | None) -> TextIO:
    """A stream on the descriptor `number` with the encoding and buffering of `old`."""
    if old is not None:
        with contextlib.suppress(OSError, ValueError):
            old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Output(number, "w", closefd=False)),
        encoding=getattr(old, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=number == 2 or getattr(old, "line_buffering", False),
        write_through=getattr(old, "write_through", False),
    )
