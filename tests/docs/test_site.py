"""The site that `make docs` builds: its pages, its API page, and the build itself."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
import importlib.util
import posixpath
import re
import runpy
import subprocess
import sys
import typing

import pytest
from documents import ROOT, blocks

import dglpipe
import dglpipe.config

INDEX = ROOT / "docs" / "index.md"


def site() -> dict[str, typing.Any]:
    """The settings of docs/conf.py."""
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


def pages() -> set[str]:
    """The names of all pages, without their suffix, from the root of the checkout."""
    # `**` crosses folders in Sphinx; in glob, `**` matches whole parts of a path.
    patterns = [pattern.replace("**.", "**/*.") for pattern in site()["include_patterns"]]
    files = {file for pattern in patterns for file in ROOT.glob(pattern)}
    return {file.relative_to(ROOT).with_suffix("").as_posix() for file in files}


def listed() -> list[str]:
    """The entries of the tables of contents, in order; some are patterns."""
    found = []
    for block in blocks(INDEX):
        if block.mark == "{toctree}":
            for line in block.text.splitlines():
                target = re.sub(r".*<(.*)>", r"\1", line)
                if target and not target.startswith(":"):
                    found.append(posixpath.normpath(posixpath.join("/docs", target)).lstrip("/"))
    return found


def test_every_page_is_in_the_table_of_contents():
    names = pages() - {"docs/index"}
    assert "README" in names
    missing = {name for name in names if not any(fnmatch.fnmatch(name, one) for one in listed())}
    assert not missing, "add these to docs/index.md, in a table and in a toctree"


def test_the_table_of_contents_names_pages_only():
    for entry in listed():
        assert fnmatch.filter(pages(), entry), entry


def test_the_index_shows_the_pages_in_the_order_of_the_table_of_contents():
    """A forge does not show the table of contents, but the links."""
    targets = re.findall(r"\]\(([^)#]+)\.md\)", INDEX.read_text())
    links = [posixpath.normpath(posixpath.join("docs", target)) for target in targets]
    assert links == [entry for entry in listed() if "*" not in entry]


def documented() -> set[str]:
    """Full names of what docs/api.md documents."""
    found, module = set(), ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        directive = re.match(r"\.\. (\w+):: ([\w.]+)", line)
        if directive and directive[1] == "currentmodule":
            module = directive[2]
        elif directive:
            name = directive[2]
            found.add(name if name.startswith("dglpipe.") else f"{module}.{name}")
    return found


def public() -> set[str]:
    """What docs/api.md has to document."""
    result = typing.get_type_hints(dglpipe.load)["return"]
    schema = dglpipe.config
    names = {f"dglpipe.{name}" for name in dglpipe.__all__ if not name.startswith("_")}
    names |= {f"{schema.__name__}.{name}" for name in schema.__all__ if is_public(schema, name)}
    names |= {f"{result.__module__}.{result.__name__}", "dglpipe.errors"}
    if hasattr(importlib.import_module("dglpipe.methods"), "Method"):
        names.add("dglpipe.methods.Method")
    return names


def is_public(module: typing.Any, name: str) -> bool:
    """Whether a name is a class of settings or a function; not a table or a union."""
    item = getattr(module, name)
    return dataclasses.is_dataclass(item) or (callable(item) and hasattr(item, "__code__"))


def test_every_public_name_is_on_the_page_of_the_api():
    assert documented() >= public()


def test_names_on_the_page_of_the_api_exist():
    for name in documented():
        home, _, own = name.rpartition(".")
        assert name == "dglpipe.errors" or hasattr(importlib.import_module(home), own), name


def test_the_build_downloads_nothing():
    assert "sphinx.ext.intersphinx" not in site()["extensions"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_is_built_without_warnings(tmp_path):
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[docs]'")
    (recipe,) = re.findall(r"\(BIN\)/python (-m sphinx .*) -d ", (ROOT / "Makefile").read_text())
    words = [sys.executable, *recipe.split(), "-d", tmp_path / "doctrees", ROOT, tmp_path / "site"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    for page in pages():
        html = (tmp_path / "site" / f"{page}.html").read_text()
        loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="([^"]+)"', html)
        assert not [url for url in loaded if url.startswith(("http:", "https:", "//"))], page
        for url in re.findall(r'<a [^>]*href="([^"#?]+)', html):
            if not re.match(r"\w+:", url):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(page), url))
                assert (tmp_path / "site" / target).is_file(), f"{page} links to {url}"
