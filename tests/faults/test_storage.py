"""A full disk, a disk that is mounted again without writing, a run directory that disappears."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.commands import PROMPT_S
from harness.configs import small

LONG = ("epochs=100000", "evaluate.every=0", "log_every=2", "resume=auto")
SUMMARY_BYTES = 8192
"""More than the summary of a failed run takes."""


@pytest.fixture
def mount(tmp_path):
    """Mounts a tmpfs of a given size; returns its path."""
    path = tmp_path / "disk"

    def mount_size(size):
        path.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", os.fspath(path)]
        if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted")
        return path

    yield mount_size
    subprocess.run(["umount", "--lazy", os.fspath(path)], capture_output=True, check=False)


def story_of(run, status=1):
    """The lines of standard error that are not progress."""
    assert run.wait() == status
    run.assert_nobody_left(PROMPT_S)
    assert "Traceback" not in run.stderr
    assert "Logging error" not in run.stderr
    assert "another exception" not in run.stderr
    return [line for line in run.stderr.splitlines() if not line.startswith("epoch ")]


def assert_story(story, reason, file):
    """Path and reason first, then process and step, then what to do."""
    assert story[0].startswith(f"{reason}: ")
    assert file in story[0]
    assert story[1].startswith("rank ")
    assert " failed " in story[1]
    assert "run_dir" in story[2]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["300k", "2300k"])
def test_a_disk_that_becomes_full(size, mount, start):
    """By the checkpoints: two of them take 0.5 MB with a first layer of 16 channels."""
    disk = mount(size)
    run_dir = disk / "run"
    words = ("model.width=16", "checkpoint.every=2", "checkpoint.keep=100", f"run_dir={run_dir}")
    run = start("train", *small(*LONG, *words))
    assert_story(story_of(run), "No space left on device", f"{run_dir}/checkpoints/step_")
    has_room = shutil.disk_usage(disk).free >= SUMMARY_BYTES
    assert RunDir(run_dir).status() in (("failed",) if has_room else ("failed", "unfinished"))


@pytest.mark.slow
def test_a_disk_without_room_for_a_line(mount, start):
    """By a file of another program. No process can write a failure record or the summary."""
    disk = mount("4m")
    run = start("train", *small(*LONG, f"run_dir={disk / 'run'}"))
    run.wait_for_step(disk / "run", 4)
    fill(disk)
    assert_story(story_of(run), "No space left on device", f"{disk}/run/")


def fill(disk):
    with (disk / "other").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_disk_that_is_full_at_the_start(mount, start):
    disk = mount("16k")
    fill(disk)
    run = start("train", *small(f"run_dir={disk / 'run'}"))
    (line,) = story_of(run, status=2)
    assert line.startswith(f"dglpipe: run_dir: No space left on device: {disk}/run/config.yaml")
    assert not (disk / "run").exists()


@pytest.mark.slow
def test_a_run_directory_that_is_deleted(run_dir, start):
    run = start("train", *small(*LONG, "checkpoint.every=2", f"run_dir={run_dir}"))
    run.wait_for_step(run_dir, 4)
    run_dir.rename(run_dir.with_name("moved"))
    shutil.rmtree(run_dir.with_name("moved"))
    assert_story(story_of(run), "No such file or directory", os.fspath(run_dir))
    assert [path.name for path in run_dir.iterdir()] == ["summary.json"]


@pytest.mark.slow
def test_a_disk_that_is_mounted_read_only(mount, start):
    disk = mount("8m")
    run = start("train", *small(*LONG, "checkpoint.every=2", f"run_dir={disk / 'run'}"))
    run.wait_for_step(disk / "run", 4)
    # Files that are open for writing keep a file system writable: mount another one on top.
    words = ["mount", "--bind", "-o", "ro", os.fspath(disk), os.fspath(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    try:
        assert_story(story_of(run), "Read-only file system", f"{disk}/run/checkpoints")
    finally:
        subprocess.run(["umount", "--lazy", os.fspath(disk)], check=False)
