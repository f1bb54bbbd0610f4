"""Makefile and .ci/run install once, and again after a change; no package is downloaded here.

A stand-in for Python notes what it is asked to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.paths import ROOT

STAND_IN = """#!/usr/bin/env bash
echo "$*" >> "$NOTES"
case "$*" in
  *"version_info < (3, 10)"*) exit "${TOO_OLD:-0}" ;;
  *"import dglpipe"*) echo "${INSTALLED_FROM:-$PWD}/src/dglpipe" ;;
  *"import sys"*) echo "3.${MINOR:-11}" ;;
  "-m venv "*) mkdir -p "$3/bin"; for it in python dglpipe zizmor; do cp "$0" "$3/bin/$it"; done ;;
  *"pip install"*) exit "${NO_INSTALL:-0}" ;;
  *mypy*) exit "${BAD_TYPES:-0}" ;;
esac
"""


class Checkout:
    """A copy of the Makefile's inputs, with a stand-in for Python."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder = folder
        self.python = shared / "python"
        self.notes = shared / "notes"
        self.cache = shared / "cache"
        self.venv = shared / "venv"
        for name in ("Makefile", "setup.cfg", "pyproject.toml", ".ci"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def call(self, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command and returns the notes of this call."""
        self.notes.write_text("")
        own = {"NOTES": str(self.notes), "PYTHON": str(self.python), "HOME": str(self.cache)}
        # The make that runs the tests hands its own variables on.
        inherited = {key: value for key, value in os.environ.items() if "MAKE" not in key}
        inherited.pop("XDG_CACHE_HOME", None)
        return subprocess.run(
            [str(word) for word in words],
            cwd=self.folder,
            env={**inherited, **own, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def make(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call("make", f"VENV={self.venv}", *words, **environment)

    def ci(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call("bash", ".ci/run", **environment)

    def asked(self, what: str) -> list[str]:
        """The calls of Python that contain `what`."""
        return [line for line in self.notes.read_text().splitlines() if what in line]

    def environments(self) -> list[Path]:
        return sorted((self.cache / ".cache" / "dglpipe-ci").glob("[!.]*"))


@pytest.fixture
def checkout(tmp_path):
    for name in ("one", "shared"):
        (tmp_path / name).mkdir()
    return Checkout(tmp_path / "one", tmp_path / "shared")


def test_second_call_does_not_install(checkout):
    assert checkout.make("test").returncode == 0
    assert checkout.asked("pip install") == ["-m pip install --editable .[test]"]
    assert checkout.asked("-m venv")
    assert checkout.make("test").returncode == 0
    assert checkout.asked("-m pytest") == ["-m pytest -n 2 --dist worksteal -m not slow"]
    assert not checkout.asked("pip install") + checkout.asked("-m venv")


def test_quickstart_after_test_installs_nothing(checkout):
    checkout.make("test")
    assert checkout.make("quickstart", "ARGS=epochs=3").returncode == 0
    assert not checkout.asked("pip install")
    assert checkout.asked("train epochs=3")


@pytest.mark.parametrize("name", ["setup.cfg", "pyproject.toml"])
def test_changed_requirements_are_installed(checkout, name):
    checkout.make("test")
    later = (checkout.venv / ".dglpipe-test").stat().st_mtime + 5
    os.utime(checkout.folder / name, (later, later))
    checkout.make("test")
    assert len(checkout.asked("pip install")) == 1


def test_interrupted_installation_is_repeated(checkout):
    assert checkout.make("test", NO_INSTALL="1").returncode == 2
    assert checkout.make("test").returncode == 0
    assert checkout.asked("pip install")
    assert not checkout.asked("-m venv")


def test_environment_of_another_checkout_is_installed_anew(checkout, tmp_path):
    checkout.make("test")
    (tmp_path / "two").mkdir()
    other = Checkout(tmp_path / "two", tmp_path / "shared")
    other.make("test")
    assert len(other.asked("pip install")) == 1
    other.make("test")
    assert not other.asked("pip install")


def test_environment_that_is_there_already_is_used(checkout):
    (checkout.venv / "bin").mkdir(parents=True)
    shutil.copy2(checkout.python, checkout.venv / "bin" / "python")
    assert checkout.make("test").returncode == 0
    assert not checkout.asked("-m venv")


def test_python_that_is_too_old(checkout):
    done = checkout.make("test", TOO_OLD="1")
    assert done.returncode == 2
    assert "dglpipe needs Python 3.10 or later" in done.stderr
    assert not checkout.asked("-m venv")


def test_wheel_is_built_from_scratch_and_checked(checkout):
    old = checkout.folder / "dist" / "dglpipe-0.0.1.tar.gz"
    old.parent.mkdir()
    old.write_text("")
    assert checkout.make("wheel").returncode == 0
    assert checkout.asked("pip install") == ["-m pip install --editable .[dev]"]
    assert checkout.asked("-m build")
    assert checkout.asked("-m twine check --strict")
    assert not old.exists()


def test_parts_of_lint_run_alone(checkout):
    assert checkout.make("lint-style").returncode == 0
    assert checkout.asked("-m ruff")
    assert not checkout.asked("-m mypy") + checkout.asked("-m check_jsonschema")


def test_the_site_is_built_with_its_own_requirements(checkout):
    assert checkout.make("docs").returncode == 0
    assert checkout.asked("pip install") == ["-m pip install --editable .[docs]"]
    assert checkout.asked("-m sphinx -E -W ")
    assert checkout.make("docs").returncode == 0
    assert not checkout.asked("pip install")


TARGETS = ("quickstart", "test", "test-all", "lint", "wheel", "docs", "gpu-check", "clean", "help")
LINTERS = ("lint-style", "lint-types", "lint-workflows")


def test_help_lists_every_target(checkout):
    output = checkout.make().stdout
    for target in TARGETS + LINTERS:
        assert f"make {target} " in output
    assert not checkout.asked("")


def test_ci_runs_linters_and_tests_and_keeps_its_environment(checkout):
    done = checkout.ci()
    assert done.returncode == 0, done.stderr
    for tool in ("ruff check", "ruff format --check", "mypy", "check_jsonschema", "pytest"):
        assert checkout.asked(f"-m {tool}"), tool
    assert checkout.asked("--offline --quiet .github")
    assert len(checkout.environments()) == 1
    assert checkout.ci().returncode == 0
    assert checkout.asked("-m pytest")
    assert not checkout.asked("pip install")


def test_ci_deletes_environments_of_other_requirements(checkout):
    checkout.ci()
    (old,) = checkout.environments()
    with (checkout.folder / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    assert checkout.ci().returncode == 0
    (new,) = checkout.environments()
    assert new != old
    assert checkout.ci(MINOR="12").returncode == 0
    assert checkout.environments() != [new]


def test_ci_does_not_use_an_environment_that_was_not_finished(checkout):
    assert checkout.ci(NO_INSTALL="1").returncode != 0
    (broken,) = checkout.environments()
    (broken / "half_a_package").write_text("")
    assert checkout.ci().returncode == 0
    assert not (broken / "half_a_package").exists()
    assert checkout.asked("-m venv")


def test_ci_goes_on_to_the_tests_and_fails_if_the_linters_do(checkout):
    done = checkout.ci(BAD_TYPES="1")
    assert done.returncode == 1
    assert "failed: lint" in done.stderr
    assert checkout.asked("-m pytest")


def test_ci_refuses_to_test_another_checkout(checkout):
    done = checkout.ci(INSTALLED_FROM="/elsewhere")
    assert done.returncode == 1
    assert "the tests would run on /elsewhere/src/dglpipe, not on this checkout" in done.stderr
