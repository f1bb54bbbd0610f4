"""The high-water mark of a process is its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dglpipe import host

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
def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
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


def test_a_status_without_a_peak_is_no_mistake(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert host.peak_resident_bytes() > 2**20
