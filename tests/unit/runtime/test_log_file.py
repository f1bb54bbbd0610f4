"""Log files on a full disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from dglpipe.errors import StorageError
from dglpipe.runtime.log_file import LogFile, log_storage_errors_of_threads

FULL = Path("/dev/full")
"""A device on which every write fails with ENOSPC."""


def record(text, *args):
    return logging.LogRecord("dglpipe", logging.ERROR, __file__, 1, text, args, None)


def test_a_full_disk_is_reported_by_check_alone(capfd):
    log = LogFile(FULL)
    log.check()
    for number in range(3):
        log.handle(record("line %d", number))
    with pytest.raises(StorageError, match=r"^No space left on device: /dev/full$"):
        log.check()
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_message_is_reported_as_before(tmp_path, capfd):
    log = LogFile(tmp_path / "log")
    log.handle(record("line %d", "one"))
    log.check()
    assert "Logging error" in capfd.readouterr().err
    log.close()


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(StorageError, match=rf"^No such file or directory: {tmp_path}/gone/log$"):
        LogFile(tmp_path / "gone" / "log")


def test_a_thread_that_fails_on_a_full_disk_prints_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log = LogFile(tmp_path / "log")
    logger = logging.getLogger("dglpipe")
    monkeypatch.setattr(logger, "handlers", [log])
    monkeypatch.setattr(logger, "propagate", False)
    log_storage_errors_of_threads()

    def fail():
        with FULL.open("w") as file:
            file.write("x")

    thread = threading.Thread(target=fail, name="writer")
    thread.start()
    thread.join()
    log.close()
    assert capfd.readouterr().err == ""
    assert (tmp_path / "log").read_text() == "writer: [Errno 28] No space left on device\n"
