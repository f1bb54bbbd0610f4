"""A wheel is built, unpacked in another folder, and trains there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from dglpipe.cli.config_groups import choices, groups
from harness.paths import ROOT

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "src", "conf")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def call(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build writes files to its source folder and reuses old ones."""
    folder = tmp_path_factory.mktemp("sources")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, folder / name)
    out = folder / "out"
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    call(*PIP, *build, folder, cwd=folder)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the content of the wheel only."""
    folder = tmp_path_factory.mktemp("installed")
    call(*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def test_every_file_that_is_needed_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src").rglob("dglpipe/**/*.py")
    }
    expected |= {"dglpipe/py.typed", "dglpipe/data/digits.safetensors", "dglpipe/conf/config.yaml"}
    expected |= {
        f"dglpipe/conf/{group}/{choice}.yaml" for group in groups() for choice in choices(group)
    }
    assert not expected - names
    assert len([name for name in names if name.endswith(".yaml")]) > 30


def test_the_wheel_has_no_other_files(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top.split("-")[0] for top in tops} == {"dglpipe"}
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "test" in name]


def test_wheel_says_what_it_is_and_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nLicense-File: LICENSE\n" in metadata
    assert "\nLicense: " not in metadata, "the field that License-Expression replaces"
    (text,) = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
    assert archive.read(text).decode() == (ROOT / "LICENSE").read_text()
    assert "\nRequires-Python: >=3.10\n" in metadata
    assert "\nRequires-Dist: torch>=" in metadata
    assert "# dglpipe" in metadata, "the README is not its description"


@pytest.mark.parametrize("section", ["options", "options.extras_require"])
def test_requirements_have_lower_bounds_only(section):
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    keys = ["install_requires"] if section == "options" else list(setup[section])
    wanted = [line for key in keys for line in setup[section][key].split()]
    assert wanted
    assert not [line for line in wanted if any(mark in line for mark in ("<", "==", "~=", "!="))]


@pytest.mark.slow
def test_it_trains_away_from_the_checkout(installed, tmp_path):
    own = {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    program = installed / "bin" / "dglpipe"
    where = call(
        sys.executable, "-c", "import dglpipe; print(dglpipe.__file__)", cwd=tmp_path, **own
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    settings = ("max_steps=2", "model.width=4", "pipeline.processes=1", "evaluate.every=0")
    call(program, "train", *settings, "run_dir=run", cwd=tmp_path, **own)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["stages"] == 2
    assert summary["git"] is None, "it found a checkout"
