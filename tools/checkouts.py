"""Run the code of a checkout, not the installed dglpipe.

A checkout is copied to a temporary folder as an importable package. The copy does not change while
the checkout is edited, and no bytecode is written into the checkout.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "dglpipe"
LABELS = ("before", "after")
TIMEOUT_S = 1800
LEFT_OUT = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TORCHELASTIC_RUN_ID")
"""Environment variables that would change which code runs, or how."""
CHECK = "import importlib, sys; [print(importlib.import_module(m).__file__) for m in sys.argv[1:]]"
SITECUSTOMIZE = f'''"""Remove the import finder of an editable install of {PACKAGE}.

A module that this copy lacks must not be imported from another checkout.
"""

import sys

sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if not getattr(finder, "__module__", "").startswith("__editable___{PACKAGE}")
]
'''
SCRIPT = """import sys

from {module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
"""


class CheckoutError(Exception):
    """The folder is not a checkout of the project, or a command of the checkout failed."""


@dataclass(frozen=True)
class Training:
    """A training run in progress.

    Attributes:
        label: label of the checkout, `before` or `after`.
        log: file of the output.
        process: the command; it leads the session of all processes of the run.
    """

    label: str
    run_dir: Path
    log: Path
    process: subprocess.Popen[bytes]

    def summary(self) -> dict[str, Any]:
        """Wait for the end of the run and return summary.json.

        Raises:
            CheckoutError: the run failed or exceeds TIMEOUT_S.
        """
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self.error(f"no end after {TIMEOUT_S} s") from None
        if status:
            raise self.error(f"status {status}")
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return summary

    def error(self, reason: str) -> CheckoutError:
        """The reason with the last lines of the output."""
        last = self.log.read_text(errors="replace").splitlines()[-5:]
        return CheckoutError("\n".join([f"{self.label}: train: {reason}", *last]))


@dataclass(frozen=True)
class Checkout:
    """A checkout and the importable copy of its package.

    Attributes:
        label: `before` or `after`.
        root: folder of the checkout.
        folder: folder of the copy; first on PYTHONPATH of every command.
    """

    label: str
    root: Path
    folder: Path

    @property
    def script(self) -> Path:
        """Equivalent of the console script that pip would install."""
        return self.folder / "bin" / PACKAGE

    def environment(self) -> dict[str, str]:
        """Environment of every command; spawned processes inherit it."""
        kept = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
        return {**kept, "PYTHONPATH": str(self.folder)}

    def start(self, arguments: Sequence[str], cwd: Path, output: Any) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS` in a session of its own."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @contextmanager
    def training(self, overrides: Sequence[str], run_dir: Path) -> Iterator[Training]:
        """Start `python -m dglpipe train`; its processes end with the block at the latest."""
        words = ["-m", PACKAGE, "train", *overrides, f"run_dir={run_dir}"]
        log = run_dir.with_suffix(".log")
        with log.open("wb") as output:
            process = self.start(words, run_dir.parent, output)
        try:
            yield Training(self.label, run_dir, log, process)
        finally:
            end(process)

    def verify(self, modules: Sequence[str]) -> None:
        """Raise CheckoutError unless Python imports `modules` from the copy."""
        answer = subprocess.run(
            [sys.executable, "-c", CHECK, *modules],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            check=False,
            text=True,
            timeout=TIMEOUT_S,
        )
        found = answer.stdout.splitlines()
        if answer.returncode or len(found) != len(modules):
            raise CheckoutError(
                f"{self.label}: cannot import {', '.join(modules)}\n{answer.stderr}"
            )
        for name, path in zip(modules, found, strict=True):
            if not Path(path).is_relative_to(self.folder):
                raise CheckoutError(f"{self.label}: {name} is imported from {path}")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the remaining processes of the session that `Checkout.start` created."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def copy_package(root: Path, folder: Path) -> list[str]:
    """Copy the package of a checkout to `folder/dglpipe` as setup.cfg lays it out.

    Returns:
        Names of the packages with a folder of their own in setup.cfg: dglpipe, dglpipe.conf.

    Raises:
        CheckoutError: setup.cfg or one of the folders is missing.
    """
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    if not settings.has_option("options", "package_dir"):
        raise CheckoutError(f"{root}: setup.cfg has no [options] package_dir")
    folders = _pairs(settings.get("options", "package_dir"))
    sources = {PACKAGE: f"{folders.pop('', '.')}/{PACKAGE}", **folders}
    for name, source in sources.items():
        if not (root / source).is_dir():
            raise CheckoutError(f"{root}: has no folder {source}")
        target = folder.joinpath(*name.split("."))
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / source, target, ignore=ignored, dirs_exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    scripts = _pairs(settings.get("options.entry_points", "console_scripts"))
    module, _, function = scripts[PACKAGE].partition(":")
    (folder / "bin").mkdir()
    script = SCRIPT.format(module=module, function=function)
    (folder / "bin" / PACKAGE).write_text(script)
    return list(sources)


def _pairs(text: str) -> dict[str, str]:
    """`name = value` lines of a multi-line setting."""
    lines = [line.partition("=") for line in text.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, _, value in lines}


@contextmanager
def open_checkouts(arguments: argparse.Namespace) -> Iterator[tuple[Checkout, Checkout]]:
    """Copy both checkouts of the command line, compile their bytecode, and check the imports.

    A CheckoutError, including one raised in the block, ends the script with status 2. In the block,
    SIGTERM raises SystemExit, so that no process or folder is left.
    """
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with tempfile.TemporaryDirectory(prefix="compare_") as scratch:
            roots = zip(LABELS, (arguments.before, arguments.after), strict=True)
            before, after = (_open(label, root, Path(scratch) / label) for label, root in roots)
            yield before, after
    except CheckoutError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _open(label: str, root: Path, folder: Path) -> Checkout:
    folder.mkdir()
    modules = copy_package(root, folder)
    checkout = Checkout(label, root, folder)
    compiled = [sys.executable, "-m", "compileall", "-q", str(folder / PACKAGE)]
    subprocess.run(compiled, check=True, env=checkout.environment())
    checkout.verify(modules)
    return checkout
