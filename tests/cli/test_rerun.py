"""The same command again: after a kill at start-up, after the end of a run, and as a sweep."""

from __future__ import annotations

import json

import pytest

import dglpipe
import dglpipe.runtime.run
from dglpipe.cli.main import run
from dglpipe.config import from_yaml, to_yaml
from dglpipe.files import write_json
from dglpipe.runtime.run_dir import RunDir
from harness.configs import make_config, small


class Runs:
    """Runs `dglpipe train` in this process; the launcher writes a summary instead of training."""

    def __init__(self, capture):
        self.capture = capture
        self.launched = []

    def launch(self, plan, run_dir):
        self.launched.append(run_dir.path.name)
        summary = {"status": "finished", "seed": plan.config.seed}
        write_json(run_dir.summary, summary)
        return summary

    def train(self, *words, expected=0):
        """The names of the directories that were trained, and standard error."""
        self.launched.clear()
        status = run(["train", *small(*words)])
        error = self.capture.readouterr().err
        assert status == expected, error
        return list(self.launched), error


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    runs = Runs(capsys)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dglpipe.runtime.run, "launch", runs.launch)
    return runs


def state(folder):
    """Everything in `folder`, with content and time of the last change."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


# ---------------------------------------------------------------- finished runs


def test_a_finished_run_is_not_trained_again(runs, tmp_path):
    assert runs.train("run_dir=run")[0] == ["run"]
    before = state(tmp_path)
    # A setting that a resumed run may change.
    launched, error = runs.train("run_dir=run", "resume=auto", "pipeline.processes=1")
    assert launched == []
    assert error == "dglpipe: run: already finished; nothing was trained\n"
    assert state(tmp_path) == before
    refused = runs.train("run_dir=run", expected=2)[1]
    assert "run_dir: run holds a finished run" in refused
    refused = runs.train("run_dir=run", "resume=auto", "epochs=3", expected=2)[1]
    assert "epochs: got 3; allowed: 2, as before" in refused
    assert state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("optimizer=adam", "optimizer"),
        ("seed=1", "seed: got 1; allowed: 0, as before"),
    ],
)
def test_a_finished_run_of_other_settings_is_refused(runs, tmp_path, other, message):
    runs.train("run_dir=run")
    before = state(tmp_path)
    launched, error = runs.train("run_dir=run", "resume=auto", other, expected=2)
    assert launched == []
    assert message in error
    assert state(tmp_path) == before


def test_from_python_a_finished_run_returns_its_summary(runs, tmp_path):
    config = make_config("seed=7", "resume=auto")
    config.run_dir = str(tmp_path / "run")
    first = dglpipe.train(config)
    assert dglpipe.train(config) == first == {"status": "finished", "seed": 7}
    assert runs.launched == ["run"]


@pytest.mark.slow
def test_a_sweep_again_trains_what_is_left(runs, tmp_path):
    words = ("-m", "seed=1,2", "run_dir=sweep", "resume=auto")
    assert runs.train(*words)[0] == ["0", "1"]
    # As if killed in job 1: its summary is missing.
    RunDir(tmp_path / "sweep" / "1").summary.unlink()
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra:\n  ru")
    launched, error = runs.train(*words)
    assert launched == ["1"]
    assert error == f"dglpipe: {tmp_path}/sweep/0: already finished; nothing was trained\n"


@pytest.mark.slow
def test_a_finished_sweep_again_trains_nothing(runs, tmp_path):
    words = ("-m", "seed=1,2", "run_dir=sweep", "resume=auto")
    assert runs.train(*words)[0] == ["0", "1"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    launched, error = runs.train(*words)
    assert launched == []
    assert error.count("already finished; nothing was trained") == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------- kills at start-up


def test_leftovers_of_a_killed_start_do_not_block(runs, tmp_path):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.yaml.1").touch()
    assert runs.train("run_dir=run", "resume=auto")[0] == ["run"]
    assert not (tmp_path / "run" / ".config.yaml.1").exists()


def test_an_unreadable_configuration_of_a_run_with_checkpoints_is_named(runs, tmp_path):
    run_dir = RunDir(tmp_path / "run")
    run_dir.claim("never").close()
    (run_dir.checkpoints / "step_00000003").mkdir(parents=True)
    run_dir.config.write_text(to_yaml(make_config())[:300])
    before = state(tmp_path)
    error = runs.train("run_dir=run", "resume=auto", expected=2)[1]
    assert "run_dir: run/config.yaml is not the configuration of a run" in error
    assert state(tmp_path) == before


@pytest.mark.slow
def test_a_run_with_nothing_but_its_configuration_starts(runs, tmp_path):
    runs.train("run_dir=run")
    for path in (tmp_path / "run").rglob("*"):
        if path.name != "config.yaml":
            path.rmdir() if path.is_dir() else path.unlink()
    assert "resume=auto" in runs.train("run_dir=run", expected=2)[1]
    assert runs.train("run_dir=run", "resume=auto")[0] == ["run"]
    assert from_yaml((tmp_path / "run" / "config.yaml").read_text()).epochs == 2


@pytest.mark.slow
@pytest.mark.parametrize("torn", ['{"status": "fini', ""])
def test_a_run_with_a_torn_summary_is_unfinished(runs, tmp_path, torn):
    run_dir = RunDir(tmp_path / "run")
    runs.train("run_dir=run")
    run_dir.summary.write_text(torn)
    assert runs.train("run_dir=run", "resume=auto")[0] == ["run"]
    assert json.loads(run_dir.summary.read_text())["status"] == "finished"
