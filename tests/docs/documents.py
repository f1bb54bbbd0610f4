"""Code blocks and anchors of the project's documents."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.paths import ROOT

BIN = Path(sys.executable).parent
"""Folder of the programs that the documents name."""
FOLDERS = ("docs", "benchmarks", "tools")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(file for one in FOLDERS for file in (ROOT / one).rglob("*.md"))]
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    mark: str
    """The word after the language: `make`, for example."""
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block shows: its path is the comment in the first line."""
        found = re.match(r"# ([\w/]+\.(?:py|yaml))\n", self.text)
        return found[1] if found and self.language in ("python", "yaml") else None

    def commands(self) -> list[list[str]]:
        """The words of every line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [
            shlex.split(line, comments=True) for line in lines if shlex.split(line, comments=True)
        ]


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    text = document.read_text()
    name = document.relative_to(ROOT).as_posix()
    found = re.finditer(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    return [
        Block(name, text[: match.start()].count("\n") + 1, match[1], match[2], match[3])
        for match in found
    ]


def write_files(document: Path, folder: Path) -> None:
    """Writes the files that a document shows in full."""
    for block in blocks(document):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def anchors(document: Path) -> set[str]:
    """What `#...` can point to in a document: its headings as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}
