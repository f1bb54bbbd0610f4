"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
"""Of a tensor of each of five steps."""


def faults(*words: str, **variables: str) -> tuple[int, str]:
    """Page faults of five steps on tensors of 64 MiB."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    answer = subprocess.run(
        [sys.executable, "-c", STEPS, *words],
        env={**own, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    count, kept = answer.stdout.split()
    return int(count), kept


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_step_takes_the_memory_of_the_step_before():
    count, kept = faults("keep")
    if kept == "False":
        pytest.skip("no glibc: its malloc is not told anything")
    without, _ = faults()
    assert without > PAGES, "where malloc is told nothing, this measures nothing"
    assert count < without / 4


def test_what_the_user_set_stands():
    assert faults("keep", MALLOC_ARENA_MAX="2")[1] == "False"
