"""The log file of a process on a disk that may be full."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

from dglpipe.errors import StorageError
from dglpipe.files import writing


class LogFile(logging.FileHandler):
    """Appends log records to a file and keeps the first error of the file for `check`.

    `logging` would print a traceback to standard error for every record that cannot be written.

    Raises:
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: StorageError | None = None
        with writing(path):
            super().__init__(path)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by `logging` in the handler of the exception that a record caused."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self._error is None:
            self._error = StorageError(self._path, error)
            self._error.__cause__ = error

    def check(self) -> None:
        """Raises the first error of the file, if any."""
        if self._error is not None:
            raise self._error


def log_storage_errors_of_threads() -> None:
    """Makes a thread that ends with an OSError log it instead of printing a traceback.

    The writer of TensorBoard has such a thread; its next call raises the error in the caller.
    """
    default = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not issubclass(arguments.exc_type, OSError):
            default(arguments)
            return
        name = arguments.thread.name if arguments.thread is not None else "a thread"
        logging.getLogger("dglpipe").error("%s: %s", name, arguments.exc_value)

    threading.excepthook = hook
