"""Runs whose loading processes end, stop, or have no shared memory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from torchvision.io import write_png

from dglpipe.runtime.run_dir import RunDir
from harness.commands import DGLPIPE, PROMPT_S, TORCHRUN
from harness.processes import children, descendants

pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")
SETTINGS = (
    "batch_size=8",
    "model.width=4",
    "pipeline.threads=1",
    "pipeline.split=even",
    "data=image_folder",
    "data.workers=1",
)
START_S = 100.0
"""Maximum seconds until a run has made four steps; three processes load torch, one by one."""
LITTLE_MEMORY = 'mount -t tmpfs -o size=4m tmpfs /dev/shm && exec "$@"'
"""A shell script that runs its arguments with 4 MiB in /dev/shm, in a mount namespace."""


@pytest.fixture
def images(tmp_path):
    """Images of two sizes, which are decoded in loading processes."""
    for split, count in (("train", 8), ("test", 2)):
        for label in "ab":
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                image = torch.zeros(3, 8, 8 + 2 * (index % 2), dtype=torch.uint8)
                write_png(image, f"{folder}/{index}.png")
    return f"data.root={tmp_path / 'images'}"


def long_run(images, run_dir, *more):
    long = ("epochs=100000", "evaluate.every=0", "on_nonfinite=ignore")
    return (*SETTINGS, images, f"run_dir={run_dir}", *long, *more)


def loading_processes(run, run_dir):
    """The processes of the loader of rank 0, of a run that trains."""
    rank_0, _ = run.wait_for_step(run_dir, 4, START_S)
    (server,) = [pid for pid in children(rank_0) if children(pid)]
    return children(server)


def assert_reported(run, cause):
    """The report names what to change, and nothing follows the last line."""
    assert "rank 0 (stage 0) failed at step" in run.stderr
    assert f"LoadingError: data.workers=1: {cause}" in run.stderr
    for word in ("/dev/shm has", "batch_size", "data.workers=0", "docker run --shm-size"):
        assert word in run.stderr
    assert run.stderr.rstrip().splitlines()[-1].startswith("log: ")
    assert "resource_tracker" not in run.stderr


@pytest.mark.slow
def test_a_killed_loading_process_ends_the_run(start, images, run_dir, tmp_path):
    """With a TMPDIR whose path is too long for the name of a socket."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    words = long_run(images, run_dir, "log_every=2", "timeout_s=60")
    run = start("train", *words, TMPDIR=str(folder))
    (loader,) = loading_processes(run, run_dir)
    began = time.monotonic()
    os.kill(loader, signal.SIGKILL)
    assert run.wait() == 1
    run.assert_nobody_left()
    assert time.monotonic() - began < PROMPT_S
    assert RunDir(run_dir).status() == "failed"
    assert_reported(run, "a loading process was ended by SIGKILL, as when memory runs out")


@pytest.mark.slow
def test_a_stopped_loading_process_ends_the_run(start, images, run_dir):
    run = start("train", *long_run(images, run_dir, "log_every=2", "timeout_s=40"))
    (loader,) = loading_processes(run, run_dir)
    began = time.monotonic()
    os.kill(loader, signal.SIGSTOP)
    assert run.wait() == 1
    run.assert_nobody_left()
    assert 20 < time.monotonic() - began < 20 + PROMPT_S
    assert_reported(run, "a loading process has not answered for 20 s (half of timeout_s)")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("launcher", [DGLPIPE, (*TORCHRUN, "--nproc-per-node=2", "-m", "dglpipe")])
def test_loading_processes_end_with_the_run(launcher, number, start, images, run_dir):
    """Even a stopped one, when the launcher is killed or ended."""
    run = start(*launcher, "train", *long_run(images, run_dir, "log_every=2", "timeout_s=60"))
    (loader,) = loading_processes(run, run_dir)
    os.kill(loader, signal.SIGSTOP)
    os.kill(run.pid, number)
    run.wait()
    run.assert_nobody_left()


@pytest.mark.slow
def test_loading_processes_end_with_their_worker(start, images, run_dir):
    run = start("train", *long_run(images, run_dir, "log_every=2", "timeout_s=60"))
    (loader,) = loading_processes(run, run_dir)
    rank_0, _ = run.wait_for_step(run_dir, 4)
    below = descendants(rank_0)
    assert loader in below
    os.kill(rank_0, signal.SIGKILL)
    assert run.wait() == 1
    run.assert_nobody_left()
    assert "resource_tracker" not in run.stderr


@pytest.fixture
def with_little_memory():
    """Words that run a command with 4 MiB of shared memory."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare")
    words = (unshare, "-m", "sh", "-c", LITTLE_MEMORY, "sh")
    tried = subprocess.run((*words, "true"), capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a mount namespace is not permitted: {tried.stderr}")
    return words


@pytest.mark.slow
def test_little_shared_memory(with_little_memory, start, images, run_dir, tmp_path):
    """A training batch needs 6 MiB. The four test images fit, so that evaluation works."""
    words = (*SETTINGS, images, "data.image_size=512", "epochs=1", "timeout_s=60")
    expected = "LoadingError: data.workers=1: cannot allocate 6.0 MiB in /dev/shm for a batch of 8"
    run = start(*with_little_memory, *DGLPIPE, "train", *words, f"run_dir={tmp_path / 'failed'}")
    assert run.wait(START_S) == 1
    run.assert_nobody_left()
    assert f"rank 0 (stage 0) failed before the first step: {expected}" in run.stderr
    assert start("train", *words, f"run_dir={run_dir}").wait(START_S) == 0
    run = start(*with_little_memory, *DGLPIPE, "evaluate", f"run={run_dir}")
    assert run.wait(START_S) == 0, run.stderr
