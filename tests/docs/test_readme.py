"""Every command of README.md runs in a shortened form, or is checked without running.

A block ```sh of the README is run line by line in a folder of its own; in the other documents
its settings are looked up. A block ```sh make is checked by `make -n`. There are no others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from documents import DOCUMENTS, ROOT, Block, blocks
from torchvision.io import write_png

from dglpipe.cli.compose import compose, take_apart
from harness.commands import Command

OWN = [path for path in DOCUMENTS if "benchmarks" not in path.relative_to(ROOT).parts]
SHELL = [block for path in OWN for block in blocks(path) if block.language == "sh"]
RUN = [block for block in SHELL if not block.mark and block.document == "README.md"]
SETTINGS = [block for block in SHELL if not block.mark]
MAKE = [block for block in SHELL if block.mark == "make"]
BIN = Path(sys.executable).parent

SMALL = ("max_steps=2", "evaluate.every=0")
"""Behind every `train`: less of the same."""
SMALL_MODEL = {
    "cnn": "model.width=4",
    "resnet18": "batch_size=4",
}


def shorten(words: list[str]) -> list[str]:
    """The same command for two steps of a small network."""
    if "train" not in words or "--help" in words:
        return words
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    model = chosen.get("model", "cnn6")
    family = "cnn" if model.startswith("cnn") else model
    return [*words, *SMALL, *([SMALL_MODEL[family]] if family in SMALL_MODEL else [])]


@pytest.fixture
def folder(tmp_path):
    """The working directory of the README: a checkout, and a folder of images."""
    for name in ("examples", "launch", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    for index, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(4):
            image = torch.full((3, 32, 32), 50 * index + number, dtype=torch.uint8)
            write_png(image, str(tmp_path / "photos" / place / f"{number}.png"))
    return tmp_path


@pytest.fixture
def environment(monkeypatch):
    """PATH with the commands of this Python environment."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    return {**own, "PATH": f"{BIN}{os.pathsep}{own['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}


def by_its_name(
    words: list[str], folder: Path, environment: dict[str, str]
) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program on PATH."""
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


def without_loading(words: list[str], folder: Path) -> tuple[int, str, str]:
    """The same for `dglpipe`, forked from a process that has loaded torch."""
    for name in ("stdout", "stderr"):
        (folder / name).unlink(missing_ok=True)
    command = Command(words[1:], folder)
    try:
        return command.wait(100), command.stdout, command.stderr
    finally:
        assert command.kill() == [], "processes were left behind"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands(block: Block, folder, environment):
    for words in map(shorten, block.commands()):
        if words[0] == "dglpipe" and words[1] != "models":
            status, out, err = without_loading(words, folder)
        else:
            status, out, err = by_its_name(words, folder, environment)
        assert status == 0, f"{block} {words}:\n{out}\n{err}"
        assert out, f"{block} {words} said nothing"


@pytest.mark.parametrize("block", SETTINGS, ids=str)
def test_settings_are_right_as_they_stand(block: Block, monkeypatch):
    """Every key and value exists, including those that the shortened command overrides."""
    monkeypatch.chdir(ROOT)
    for words in block.commands():
        if "train" in words and "--help" not in words and "-m" not in words[: words.index("train")]:
            arguments = take_apart(words[words.index("train") + 1 :])
            if not arguments.sweep:
                compose(arguments)


@pytest.mark.parametrize("block", MAKE, ids=str)
def test_make_knows_its_targets(block: Block, tmp_path):
    for words in block.commands():
        assert words[0] == "make"
        done = subprocess.run(
            [*words[:1], "-n", f"VENV={tmp_path / 'venv'}", *words[1:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "pip install --editable" in done.stdout


def test_every_block_is_of_a_kind_that_is_tested():
    assert {block.mark for block in SHELL} == {"", "make"}
    programs = {words[0] for block in SETTINGS for words in block.commands()}
    assert programs == {"dglpipe", "torchrun"}


def test_python_of_the_readme_is_that_of_the_example():
    (shown,) = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert shown.text in (ROOT / "examples" / "plugin" / "shapes.py").read_text()


def test_yaml_of_the_readme_is_that_of_the_example():
    (shown,) = [block for block in blocks(ROOT / "README.md") if block.language == "yaml"]
    assert shown.text == (ROOT / "examples/plugin/conf/head/shapes.yaml").read_text()


def test_commands_are_found_where_the_tests_run():
    for program in ("dglpipe", "torchrun"):
        assert shutil.which(program, path=str(BIN)), f"{program} is not beside {sys.executable}"
