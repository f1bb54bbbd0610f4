"""Every command of README.md runs in a shortened form, or is checked without running.

A block ```sh of the README is run line by line in a folder of its own; `test_pages.py` runs those
of docs/. Here the settings of all documents are looked up, and a block ```sh make is checked by
`make -n`. `test_pages.py` checks a block ```sh launch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from commands import run_commands
from documents import BIN, DOCUMENTS, ROOT, Block, blocks, write_files

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose

OWN = [path for path in DOCUMENTS if path.relative_to(ROOT).parts[0] not in ("benchmarks", "tools")]
SHELL = [block for path in OWN for block in blocks(path) if block.language == "sh"]
RUN = [block for block in SHELL if not block.mark and block.document == "README.md"]
SETTINGS = [block for block in SHELL if not block.mark]
MAKE = [block for block in SHELL if block.mark == "make"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands(block: Block, folder, environment):
    run_commands(block, folder, environment)


@pytest.mark.parametrize("block", SETTINGS, ids=str)
def test_settings_are_right_as_they_stand(block: Block, folder, monkeypatch):
    """Also what the shortened command overrides: every key and value exists."""
    write_files(ROOT / block.document, folder)
    monkeypatch.chdir(folder)
    for words in block.commands():
        if "train" in words and "--help" not in words and "-m" not in words[: words.index("train")]:
            arguments = parse_arguments(words[words.index("train") + 1 :])
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
    assert {block.mark for block in SHELL} == {"", "make", "launch"}
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
