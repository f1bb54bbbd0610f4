"""Workflows, hooks, citation, changelog and version agree with the Makefile and the package.

`make lint` checks workflows and issue forms against their schemas; these tests check what no schema
knows.
"""

from __future__ import annotations

import re
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import dglpipe
from harness.paths import ROOT

FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
PUBLISHES = "pypa/gh-action-pypi-publish@release/v1"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@cache
def setup() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@cache
def targets() -> set[str]:
    """The targets of the Makefile that `make help` lists."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.stem}/{name}", job)
        for path in WORKFLOWS
        for name, job in load(path)["jobs"].items()
    ]


def commands() -> list[tuple[str, str]]:
    """(job, command) of every step that runs a command."""
    return [(name, step["run"]) for name, job in jobs() for step in job["steps"] if "run" in step]


def hooks() -> list[dict[str, Any]]:
    return [
        hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]


def test_there_is_a_job_for_every_check():
    assert commands() == [
        ("ci/lint", "make lint"),
        ("ci/test", "make test"),
        ("ci/docs", "make docs"),
        ("ci/wheel", "make wheel"),
        ("release/build", "make wheel"),
    ]


@pytest.mark.parametrize(("job", "command"), commands())
def test_job_runs_one_make_target(job, command):
    program, target = command.split()
    assert program == "make"
    assert target in targets()


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_hook_runs_one_part_of_make_lint_without_network(hook):
    assert hook["language"] == "system"
    program, *options, target = hook["entry"].split()
    assert (program, options) == ("make", ["--no-print-directory"])
    assert target == hook["id"]
    assert target in targets()


def test_the_hooks_are_all_parts_of_make_lint():
    (parts,) = re.findall(r"^lint: (.*) ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [hook["id"] for hook in hooks()] == parts.split()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_may_only_read(path):
    assert load(path)["permissions"] == {"contents": "read"}


def test_only_the_job_that_publishes_gets_an_identity():
    writes = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    assert writes == {"release/publish": {"id-token": "write"}}
    publishing = [
        name for name, job in jobs() if PUBLISHES in [step.get("uses") for step in job["steps"]]
    ]
    assert publishing == ["release/publish"]
    (publish,) = [job for name, job in jobs() if name == "release/publish"]
    assert publish["environment"] == {"name": "pypi"}
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"]), "it runs code of this repository"


def test_the_tests_run_on_the_oldest_versions_that_are_promised():
    oldest, newest = load(FORGE / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"][
        "include"
    ]
    assert f">={oldest['python']}" == setup()["options"]["python_requires"]
    assert tuple(map(int, newest["python"].split("."))) > tuple(
        map(int, oldest["python"].split("."))
    )
    assert newest["constraints"] == ""
    constraints = (ROOT / oldest["constraints"]).read_text().splitlines()
    pinned = {line.replace("==", ">=") for line in constraints if not line.startswith("#")}
    required = setup()["options"]["install_requires"].split()
    assert pinned == {line for line in required if line.startswith("torch")}


def test_version_is_the_same_everywhere():
    assert setup()["metadata"]["version"] == dglpipe.__version__
    assert load(ROOT / "CITATION.cff")["version"] == dglpipe.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == dglpipe.__version__


def test_changelog_has_the_sections_of_keep_a_changelog():
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limitations"}
    sections = re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections
    assert not set(sections) - known


def test_citation_names_the_software_and_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert citation["type"] == "software"
    assert citation["license"] == setup()["metadata"]["license_expression"] == "MIT"
    paper = citation["preferred-citation"]
    assert paper["title"] == "Decoupled Greedy Learning of CNNs"
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Belilovsky", "Eickenberg", "Oyallon"]
    assert (paper["volume"], paper["start"], paper["end"], paper["year"]) == (119, 736, 745, 2020)
