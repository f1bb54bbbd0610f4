"""The examples in the docstrings of the public API run, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import os
import typing
from pathlib import Path
from typing import Any

import pytest

import dglpipe
from harness.commands import fork_workers
from harness.worlds import fork_server

pytestmark = pytest.mark.timeout(240)
FUNCTIONS = sorted(set(dglpipe.__all__) - {"__version__"})


def documented(name: str) -> Any:
    """The object that a test is about: a name of `dglpipe`, or the class that `load` returns."""
    if name == "load()":
        return typing.get_type_hints(dglpipe.load)["return"]
    return getattr(dglpipe, name)


def examples(name: str) -> list[doctest.DocTest]:
    """The docstrings with examples: of the object, and of its methods."""
    item = documented(name)
    home = importlib.import_module(item.__module__)
    found = doctest.DocTestFinder().find(item, name, module=home, globs={})
    return [test for test in found if test.examples]


def run(name: str) -> None:
    """Runs the examples of one name; each docstring has names of its own."""
    for test in examples(name):
        output: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
        assert not output, "".join(output)


def run_in(folder: Path, name: str) -> None:
    """`run` in a process of the fork server. The processes that the example starts are forked too,
    which saves seconds of imports."""
    os.chdir(folder)
    fork_workers()
    run(name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which the example of `train` has been run; the other examples read its run."""
    folder = tmp_path_factory.mktemp("docstrings")
    context = fork_server()
    process = context.Process(target=run_in, args=(folder, "train"))
    process.start()
    try:
        process.join(200)
    finally:
        process.kill()
    assert process.exitcode == 0, "the example of train failed"
    return folder


def test_the_example_of_train_leaves_a_run(trained):
    assert (trained / "runs" / "first" / "summary.json").is_file()


@pytest.mark.parametrize("name", [*(one for one in FUNCTIONS if one != "train"), "load()"])
def test_examples(name, trained, monkeypatch):
    monkeypatch.chdir(trained)
    run(name)


@pytest.mark.parametrize("name", [*FUNCTIONS, "load()"])
def test_every_public_name_has_an_example(name):
    assert name in [test.name for test in examples(name)], f"{name}: its docstring has no example"
