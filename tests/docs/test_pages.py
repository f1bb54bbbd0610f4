"""Every command of the pages of docs/ runs in a shortened form, in the order of the page.

The commands run in a folder with the files that the page shows in full. The first line of such a
file is a comment with its path.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run_commands
from documents import ROOT, Block, blocks, write_files

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.glob("guide/*.md")), DOCS / "plugins.md", DOCS / "configuration.md"]
LAUNCH = [block for page in PAGES for block in blocks(page) if block.mark == "launch"]
KINDS = {"Network", "Head", "Data set", "Loss", "Method"}
"""Sections of plugins.md that need an example which is run."""


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path, folder, environment):
    write_files(page, folder)
    for block in blocks(page):
        if block.language == "sh" and not block.mark:
            run_commands(block, folder, environment)


@pytest.mark.parametrize("block", LAUNCH, ids=str)
def test_launch_commands_match_the_scripts(block: Block):
    """`test_launch.py` runs the scripts; several machines are not available."""
    (line,) = block.text.splitlines()
    (script,) = [word for word in line.split() if word.startswith("launch/")]
    header = (ROOT / script).read_text().partition("set -euo pipefail")[0]
    assert f"#   {line}\n" in header


def test_every_file_that_a_page_shows_is_used():
    for page in PAGES:
        shell = "".join(block.text for block in blocks(page) if block.language == "sh")
        rest = "".join(block.text for block in blocks(page) if block.language == "yaml")
        for block in blocks(page):
            if block.file:
                name = Path(block.file).stem
                assert name in shell or name in rest, f"{block}: no command uses {block.file}"


def test_every_kind_of_plug_in_has_an_example():
    sections = (DOCS / "plugins.md").read_text().split("\n## ")[1:]
    shown = {section.partition("\n")[0] for section in sections if "```python\n# my_" in section}
    assert shown == KINDS
