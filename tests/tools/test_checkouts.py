"""The importable copy of a checkout, and processes that run its code."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import checkouts
import pytest
from checkouts import Checkout, CheckoutError, copy_package, end, open_checkouts
from fake_checkout import write_checkout


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "copy"
    path.mkdir()
    return path


@pytest.fixture
def pair(tmp_path):
    roots = [write_checkout(tmp_path / name) for name in ("one", "other")]
    with open_checkouts(argparse.Namespace(before=roots[0], after=roots[1])) as opened:
        yield opened


def run(checkout, *words):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=checkout.folder,
        env={**checkout.environment(), "NAME": checkout.label},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_copy_has_the_folders_of_setup_cfg_and_no_bytecode(tmp_path, folder):
    root = write_checkout(tmp_path / "one")
    (root / "src" / "dglpipe" / "__pycache__").mkdir()
    assert copy_package(root, folder) == ["dglpipe", "dglpipe.conf"]
    assert (folder / "dglpipe" / "conf" / "config.yaml").read_text() == "epochs: 1\n"
    assert not (folder / "dglpipe" / "__pycache__").exists()


def test_folder_that_is_no_checkout_is_refused(tmp_path, folder):
    with pytest.raises(CheckoutError, match="no \\[options\\] package_dir"):
        copy_package(tmp_path, folder)
    root = write_checkout(tmp_path / "one")
    (root / "conf").rename(root / "settings")
    with pytest.raises(CheckoutError, match="has no folder conf"):
        copy_package(root, folder)


def test_commands_run_the_copy_of_their_checkout(pair):
    before, after = pair
    assert run(before, "-m", "dglpipe", "a") == "['a'] before"
    assert run(after, str(after.script), "b", "c") == "['b', 'c'] after"
    assert run(after, "-c", "import dglpipe; print(dglpipe.__file__)").startswith(str(after.folder))


def test_module_that_the_copy_lacks_is_not_imported_from_elsewhere(pair):
    with pytest.raises(CheckoutError, match="before: cannot import dglpipe\\.config"):
        pair[0].verify(["dglpipe.config"])


def test_module_from_outside_the_copy_is_refused(pair):
    with pytest.raises(CheckoutError, match="after: json is imported from"):
        pair[1].verify(["dglpipe", "json"])


def test_checkout_that_cannot_be_used_ends_with_status_2(tmp_path, capsys):
    arguments = argparse.Namespace(before=tmp_path, after=tmp_path)
    with pytest.raises(SystemExit) as stopped, open_checkouts(arguments):
        pass
    assert stopped.value.code == 2
    assert "package_dir" in capsys.readouterr().err


def train(tmp_path, folder, program):
    (folder / "dglpipe").mkdir()
    (folder / "dglpipe" / "__init__.py").write_text("")
    (folder / "dglpipe" / "__main__.py").write_text(program)
    return Checkout("after", tmp_path, folder).training(["a=b"], tmp_path / "run")


def test_summary_of_a_run(tmp_path, folder):
    write = "import pathlib, sys\nrun = pathlib.Path(sys.argv[-1].partition('=')[2])\nrun.mkdir()\n"
    write += "(run / 'summary.json').write_text('{\"words\": %d}' % len(sys.argv))\n"
    with train(tmp_path, folder, write) as training:
        assert training.summary() == {"words": 4}


def test_failed_run_shows_the_end_of_its_output(tmp_path, folder):
    run = train(tmp_path, folder, "raise SystemExit('no such network')\n")
    failure = pytest.raises(CheckoutError, match="after: train: status 1\nno such network")
    with run as training, failure:
        training.summary()


def test_run_that_does_not_end_is_killed(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(checkouts, "TIMEOUT_S", 0.2)
    run = train(tmp_path, folder, "import time\ntime.sleep(100)\n")
    with run as training, pytest.raises(CheckoutError, match=r"no end after 0\.2 s"):
        training.summary()
    assert training.process.returncode == -signal.SIGKILL


def test_sigterm_leaves_no_folder(tmp_path):
    root = write_checkout(tmp_path / "one")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = (
        "import argparse, os, signal, pathlib, checkouts\n"
        f"root = pathlib.Path({str(root)!r})\n"
        "with checkouts.open_checkouts(argparse.Namespace(before=root, after=root)):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    environment = {"PYTHONPATH": str(Path(checkouts.__file__).parent), "TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(scratch.iterdir()) == []


def test_end_kills_the_whole_session(tmp_path, folder):
    child = "print('ready', flush=True); import time; time.sleep(100)"
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = Checkout("before", tmp_path, folder).start(["-c", spawn], tmp_path, subprocess.PIPE)
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        end(process)
        assert process.stdout.read() == b"", "the child holds the other end of the pipe"
