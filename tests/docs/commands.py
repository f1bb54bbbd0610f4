"""Runs the commands of the documents, for two steps of a small network."""

from __future__ import annotations

import subprocess
from pathlib import Path

from documents import Block

from harness.commands import Command

SMALL = ("max_steps=2", "evaluate.every=0")
"""Overrides that shorten every `train` command."""
SMALL_MODEL = {
    "cnn": "model.width=4",
    "resnet18": "batch_size=4",
}


def run_commands(block: Block, folder: Path, environment: dict[str, str]) -> None:
    """Runs every line of `block` in `folder`; each has to succeed and to print something."""
    for words in map(shorten, block.commands()):
        if words[0] == "dglpipe" and words[1] != "models":
            status, out, err = _without_loading(words, folder)
        else:
            status, out, err = _by_its_name(words, folder, environment)
        assert status == 0, f"{block} {words}:\n{out}\n{err}"
        assert out, f"{block} {words} printed nothing"


def shorten(words: list[str]) -> list[str]:
    """The same command for two steps of a small network."""
    if "train" not in words or "--help" in words:
        return words
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    model = chosen.get("model", "cnn6")
    family = "cnn" if model.startswith("cnn") else model
    return [*words, *SMALL, *([SMALL_MODEL[family]] if family in SMALL_MODEL else [])]


def _by_its_name(
    words: list[str], folder: Path, environment: dict[str, str]
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program that the shell would find."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout, done.stderr


def _without_loading(words: list[str], folder: Path) -> tuple[int, str, str]:
    """As `_by_its_name` for `dglpipe`, forked from a process that has loaded torch."""
    for name in ("stdout", "stderr"):
        (folder / name).unlink(missing_ok=True)
    command = Command(words[1:], folder)
    try:
        status = command.wait(200)
    finally:
        left = command.kill()
    assert left == [], "the command left processes"
    return status, command.stdout, command.stderr
