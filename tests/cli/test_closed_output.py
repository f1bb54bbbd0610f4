"""Commands go on, with their exit status, when their output has no reader."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.commands import DGLPIPE, fork_workers
from harness.configs import in_test_all, small
from harness.worlds import fork_server

CLOSED, GONE = "closed", "its reader has gone"


def command_with_streams(words, folder, out, err):
    """A command in this process, with standard output and standard error as given."""
    from dglpipe.cli.main import main

    os.setsid()
    os.chdir(folder)
    for number, how in ((1, out), (2, err)):
        if how == CLOSED:
            os.close(number)
        else:
            reader, writer = os.pipe()
            os.dup2(writer, number)
            os.close(writer)
            os.close(reader)
    fork_workers()
    main(words)


@pytest.fixture
def run(tmp_path):
    """Runs a command; returns its exit status."""

    def start(words, out, err):
        task = (list(words), os.fspath(tmp_path), out, err)
        process = fork_server().Process(target=command_with_streams, args=task)
        process.start()
        process.join(60)
        return process.exitcode

    return start


@pytest.mark.parametrize(
    ("out", "err"), [(GONE, CLOSED), in_test_all(CLOSED, GONE), in_test_all(GONE, GONE)]
)
def test_a_run_finishes(run, run_dir, out, err):
    assert run(["train", *small("epochs=1", f"run_dir={run_dir}")], out, err) == 0
    assert json.loads(RunDir(run_dir).summary.read_text())["status"] == "finished"
    # Text for a closed stream must not get into a file that has its number.
    for file in (RunDir(run_dir).metrics, RunDir(run_dir).config):
        assert "stage 0:" not in file.read_text()


@pytest.mark.parametrize("words", [["--help"], ["models"]], ids=str)
@pytest.mark.parametrize(("out", "err"), [(CLOSED, CLOSED), (GONE, GONE)])
def test_a_command_that_prints_ends_quietly(run, words, out, err):
    assert run(words, out, err) == 0


def test_a_wrong_command_has_its_status(run):
    assert run(["trian"], GONE, GONE) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("redirection", ["2>&1 | head -1", ">&- 2>&- <&-"])
def test_in_a_shell(tmp_path, run_dir, redirection):
    words = shlex.join([*DGLPIPE, "train", *small("epochs=1", f"run_dir={run_dir}")])
    script = f"{words} {redirection}; echo status ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=250
    )
    assert done.stdout.endswith("status 0\n"), done.stderr
    assert done.stderr == ""
    assert json.loads(RunDir(run_dir).summary.read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_plan_on_a_full_disk_fails(tmp_path):
    script = f"{shlex.quote(sys.executable)} -m dglpipe models > /dev/full"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "dglpipe: standard output: No space left on device\n"
