"""Figures of a checkout whose files can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_checkout import write_checkout
from structure import edges, figures, main, read_modules, referenced_once

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    return write_checkout(tmp_path / "small")


def test_figures(checkout):
    assert figures(checkout) == {
        "checkout": "small",
        "python files at the root of the package": "4",
        "packages inside the package": "2",
        "units": "6",
        "import edges between units": "4",
        "functions": "6",
        "median function, lines": "2",
        "longest function, lines": "4",
        "longest function": "data.order.order",
        "functions over 80 lines": "0",
        "private functions": "3",
        "of them called exactly once": "1",
        "of them with at most one reference": "2",
        "lines of source (py)": "32",
        "lines of tests (py)": "2",
        "lines of benchmarks (py)": "0",
        "lines of tools (py)": "0",
        "lines of result files (json, jsonl)": "3",
        "words of README.md": "4",
    }


def test_edges_are_of_units(checkout):
    assert edges(read_modules(checkout / "src" / "dglpipe")) == {
        ("__main__", "cli"),
        ("data", "message"),
        ("link", "data"),
        ("link", "message"),
    }


def test_names_of_the_package_itself_and_relative_imports(checkout):
    package = checkout / "src" / "dglpipe"
    (package / "data" / "far.py").write_text(
        "from .. import link, version\nfrom ..cli import main\n"
    )
    (package / "link.py").write_text("import dglpipe\nimport os\n")
    found = edges(read_modules(package))
    assert {pair for pair in found if pair[0] == "data"} == {
        ("data", "__init__"),
        ("data", "cli"),
        ("data", "link"),
        ("data", "message"),
    }
    assert ("link", "__init__") in found


def test_callbacks_are_references_and_no_calls(checkout):
    package = checkout / "src" / "dglpipe"
    (package / "link.py").write_text("def _wait(): ...\n\n\nstart = [_wait]\n")
    assert figures(checkout)["of them called exactly once"] == "1"
    assert referenced_once(read_modules(package)) == 3


@pytest.mark.slow
def test_table_of_several_checkouts(checkout, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["structure.py", str(checkout), str(ROOT)])
    main()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["checkout", "small", ROOT.name]
    assert rest[0].split()[-2] == "4"
    assert len(rest) == 18
