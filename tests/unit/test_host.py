"""Memory of a process: freed memory that it keeps, and its peak."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dglpipe import host

STEPS = """
import resource, sys, torch
from dglpipe.host import keep_freed_memory
kept = "keep" in sys.argv and keep_freed_memory()
batch = torch.ones(2, 2**23, requires_grad=True)

def step():
    (batch * 2).relu().mul(3).relu().sum().backward()
    batch.grad = None

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
sys.stdout.write(f"{resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before} {kept}")
"""
PAGES = 5 * 2**24 * 4 // 4096
"""Pages of the tensors of five steps."""


def faults(*words: str) -> tuple[int, str]:
    """Page faults of five steps on tensors of 64 MiB."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    answer = subprocess.run(
        [sys.executable, "-c", STEPS, *words],
        env=own,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    count, kept = answer.stdout.split()
    return int(count), kept


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_step_takes_the_memory_of_the_step_before():
    count, kept = faults("keep")
    if kept == "False":
        pytest.skip("malloc is configured only with glibc")
    without, _ = faults()
    assert without > PAGES, "the measurement needs page faults without the configuration"
    assert count < without / 4


def test_malloc_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not host.keep_freed_memory()


CHILD = f"import runpy; print(runpy.run_path({host.__file__!r})['peak_resident_bytes']())"
PARENT = f"""
import resource, runpy, subprocess, sys
block = bytearray(b"1") * (300 * 2**20)
del block
peak = runpy.run_path({host.__file__!r})["peak_resident_bytes"]()
child = subprocess.run([sys.executable, "-c", {CHILD!r}], capture_output=True, check=True)
print(peak, int(child.stdout))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="macOS has ru_maxrss only")
def test_a_process_does_not_inherit_the_peak_of_its_parent():
    run = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, check=True)
    parent, child = map(int, run.stdout.split())
    assert parent > 300 * 2**20
    assert 2**20 < child < 150 * 2**20


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_proc_the_peak_is_in_the_units_of_the_platform(
    monkeypatch, tmp_path, platform, unit
):
    monkeypatch.setattr(host, "STATUS", tmp_path / "none")
    monkeypatch.setattr("sys.platform", platform)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak * unit <= host.peak_resident_bytes() <= 2 * peak * unit


def test_a_status_without_a_peak_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert host.peak_resident_bytes() > 2**20
