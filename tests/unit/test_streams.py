"""Output to a reader that has gone, to closed descriptors and to a full disk is dropped."""

from __future__ import annotations

import errno
import os
import pty
import sys

import pytest

from dglpipe.streams import Output, output_error, shield_streams

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")


@pytest.fixture
def in_child():
    """Runs a function in a forked process without streams of pytest; returns its exit status."""

    def run(function):
        child = os.fork()
        if child == 0:
            status = 99
            try:
                status = function()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


def streams_of_a_new_process():
    """What Python gives to a new process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = open(number, "w", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def gone_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def gone_terminal():
    master, slave = pty.openpty()
    os.close(master)
    return slave


@pytest.mark.parametrize(
    ("open_", "code"), [(gone_pipe, errno.EPIPE), (gone_terminal, errno.EIO)], ids=["pipe", "pty"]
)
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)], ids=str)
def test_a_reader_that_has_gone(in_child, open_, code, numbers):
    def child():
        for number in numbers:
            os.dup2(open_(), number)
        streams_of_a_new_process()
        shield_streams()
        for stream in (sys.stdout, sys.stderr):
            for _ in range(3):
                stream.write("line\n" * 10_000)
                stream.flush()
        streams = [(sys.stdout, sys.stderr)[number - 1] for number in numbers]
        assert [stream.buffer.raw.error.errno for stream in streams] == [code] * len(numbers)
        assert output_error(sys.stdout) is output_error(sys.stderr) is None
        return 7

    assert in_child(child) == 7


def test_closed_descriptors_are_not_reused(in_child, tmp_path):
    def child():
        for number in range(3):
            os.close(number)
        for name in ("stdout", "stderr"):
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
        shield_streams()
        with (tmp_path / "file").open("w") as file:
            assert file.fileno() > 2
            sys.stdout.write("to nobody\n")
            sys.stderr.write("to nobody\n")
            sys.stdout.flush()
            file.write("to the file\n")
        assert all(os.get_inheritable(number) for number in range(3))
        assert not sys.stdout.isatty()
        return 7

    assert in_child(child) == 7
    assert (tmp_path / "file").read_text() == "to the file\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_reported(in_child):
    def child():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        streams_of_a_new_process()
        shield_streams()
        sys.stdout.write("line\n")
        sys.stdout.flush()
        assert output_error(sys.stdout).errno == errno.ENOSPC
        return 7

    assert in_child(child) == 7


def test_text_arrives_in_order_and_unencodable_characters_are_escaped(in_child, tmp_path):
    def child():
        both = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        os.dup2(both, 1)
        os.dup2(both, 2)
        streams_of_a_new_process()
        shield_streams()
        sys.stderr.write("é\n")
        sys.stdout.write("\udcff\n")
        sys.stdout.flush()
        sys.stderr.write("last\n")
        return 7

    assert in_child(child) == 7
    assert (tmp_path / "file").read_text(encoding="utf-8") == "é\n\\udcff\nlast\n"


def test_streams_of_other_code_stay(capsys):
    shield_streams()
    sys.stdout.write("captured")
    assert capsys.readouterr().out == "captured"
    assert output_error(sys.stdout) is None


def test_without_an_error_everything_is_written(tmp_path):
    with Output(tmp_path / "file", "w") as output:
        assert output.write(b"abc") == 3
        assert output.error is None
    assert (tmp_path / "file").read_bytes() == b"abc"
