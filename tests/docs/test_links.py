"""Links in the documents have a target."""

from __future__ import annotations

import re

import pytest
from documents import DOCUMENTS, ROOT, anchors

LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:src|tests|conf|docs|launch|benchmarks|tools|examples)/[\w./-]+)`")


def links() -> list[tuple[str, str]]:
    return [
        (document.relative_to(ROOT).as_posix(), target)
        for document in DOCUMENTS
        for target in LINK.findall(document.read_text())
    ]


@pytest.mark.parametrize(("name", "target"), links())
def test_link(name, target):
    if target.startswith("https://"):
        return
    path, _, anchor = target.partition("#")
    document = ROOT / name
    where = (document.parent / path) if path else document
    assert where.exists(), f"{name} links to {target}"
    if anchor:
        assert anchor in anchors(where), f"{name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_that_are_named_exist(document):
    for path in SOURCE.findall(document.read_text()):
        if path != "conf/GROUP/NAME.yaml":
            assert (ROOT / path).exists() or list(ROOT.glob(f"examples/*/{path}")), path


@pytest.mark.parametrize("folder", ["src", "tests", "conf", "launch", "examples"])
def test_documents_that_sources_name_exist(folder):
    known = [f"/{document.relative_to(ROOT).as_posix()}" for document in DOCUMENTS]
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".sh", ".yaml"):
            for name in re.findall(r"[\w/-]+\.md\b", path.read_text()):
                assert any(it.endswith(f"/{name}") for it in known), f"{path} names {name}"


def test_links_are_found():
    assert ("README.md", "docs/benchmarks.md#where-dgl-loses") in links()
