"""Commands import only what they need, so that they start fast."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import dglpipe

HEAVY = ("torch", "torchvision", "numpy", "hydra", "omegaconf", "rich", "matplotlib")
REPORT = f"""
import json, sys
sys.stderr.write(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def imported_by(code: str) -> set[str]:
    """The libraries of `HEAVY` that `code` imports in a new process."""
    words = [sys.executable, "-c", code + REPORT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def imported_by_command(*arguments: str) -> set[str]:
    return imported_by(f"from dglpipe.cli.main import run\nrun({list(arguments)})")


def test_package_imports_no_library():
    assert imported_by("import dglpipe; dglpipe.__version__") == set()


def test_public_names():
    assert dir(dglpipe) == sorted(dglpipe.__all__)
    assert {"__version__", "load", "split", "train"} <= set(dglpipe.__all__)
    with pytest.raises(AttributeError, match="module 'dglpipe' has no attribute 'tarin'"):
        _ = dglpipe.tarin


@pytest.mark.parametrize("word", ["--version", "--help", "trian"])
def test_main_imports_no_library(word):
    assert imported_by_command(word) == set()


def test_help_of_train_imports_neither_torch_nor_hydra():
    assert imported_by_command("train", "--help") <= {"omegaconf"}


@pytest.mark.parametrize("command", ["train", "plan"])
def test_errors_in_the_arguments_come_before_torch(command):
    assert "torch" not in imported_by_command(command, "batch_sise=2")
