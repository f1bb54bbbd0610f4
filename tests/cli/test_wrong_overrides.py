"""Wrong overrides of every kind end with status 2: no traceback, no hang, no file."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.faults.overrides import (
    ACCEPTED,
    REFUSED,
    Case,
    attempt,
    make_cases,
    make_folder,
)
from dglpipe.errors import clipped
from harness.configs import in_test_all
from harness.paths import BENCHMARKS

COUNT = 24
"""Cases of the default suite."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the plug-ins and images of the cases."""
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "fuzz_plug_in", raising=False)
    yield tmp_path
    sys.modules.pop("fuzz_plug_in", None)


@pytest.fixture
def refuse(folder):
    """Runs a command that must be refused; returns the error message."""

    def run(*words, **environment):
        outcome = attempt(Case(words, environment))
        assert outcome.kind == REFUSED, (outcome.kind, outcome.text)
        assert outcome.text.startswith("dglpipe: ")
        return outcome.text

    return run


@pytest.fixture
def accept(folder):
    def run(*words, **environment):
        outcome = attempt(Case(("model.width=4", "pipeline.threads=1", *words), environment))
        assert outcome.kind == ACCEPTED, (outcome.kind, outcome.text)

    return run


def test_a_sample_of_wrong_overrides(folder):
    for number, case in enumerate(make_cases(COUNT, seed=1)):
        words = case.words if "run_dir=" in str(case) else (*case.words, f"run_dir=run{number}")
        outcome = attempt(Case(words, case.environment))
        assert outcome.kind in (REFUSED, ACCEPTED), f"{case}: {outcome.kind}\n{outcome.text}"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_600_wrong_overrides(tmp_path):
    output = tmp_path / "overrides.json"
    script = BENCHMARKS / "faults" / "overrides.py"
    subprocess.run([sys.executable, str(script), "--output", str(output)], check=True)
    counts = json.loads(output.read_text())["counts"]
    assert sum(counts.values()) == 600
    assert set(counts) <= {REFUSED, ACCEPTED}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer=null", "optimizer: got None; allowed: a name of adam, adamw, sgd"),
        in_test_all("schedule=true", "schedule: got True; allowed: a name of constant"),
        in_test_all("model=[null]", "model: got [None]; allowed: a name of cnn4"),
        in_test_all("model=1", "model: got 1; allowed: a name of cnn4"),
        ("model=[cnn4,cnn6]", "Give one name: model=cnn4"),
        (
            "head={name:custom,target:a.b,args:{width:3}}",
            "Give its keys one by one: head=custom head.target=a.b 'head.args={width:3}'",
        ),
        in_test_all(
            "model={_target_:a.b,width:3}", "model=custom model.target=a.b 'model.args={width:3}'"
        ),
        ("+hydra=1", "hydra: got '+hydra=1'; allowed: hydra.searchpath"),
        in_test_all("hydra.run.dir=x", "run_dir=DIR is the directory of the results"),
        ("method=sequential method.name=dgl", "method.name: got 'dgl'; allowed: sequential with"),
        in_test_all("model=cnn4 model.family=vgg", "model.family: got 'vgg'; allowed: cnn with"),
        ("run_dir=a run_dir=b", "run_dir: got 'run_dir=b' after 'run_dir=a'; allowed: one"),
        ("run_dir=" + "a" * 300, "allowed: a path of at most 255 bytes in each part"),
        ("run_dir=a\udcffb", r"run_dir: got 'run_dir=a\udcffb'; allowed: text in UTF-8"),
        in_test_all("epochs=" + "[" * 500 + "]" * 500, "nested too deep"),
        ("-m seed=range(0,2000000000)", "allowed: 1 to 10000 values in a sweep"),
        in_test_all("-m epochs=range(0,0)", "allowed: 1 to 10000 values in a sweep"),
        in_test_all("-m epochs=glob(*)", "epochs: got 'epochs=glob(*)'; allowed: a sweep of"),
        ("pipeline.threads=100000", "per core of this machine"),
        ("model.width=8000", "memory"),
        in_test_all("data.image_size=16000", "data.image_size: got 16000; allowed: "),
        in_test_all("pipeline.replicas=700 batch_size=1437", "pipeline.replicas: got 700"),
        (
            "data=synthetic data.samples=1000000000",
            "data.samples: got 1000000000; allowed: settings that need at most",
        ),
        in_test_all(
            "link.bandwidth_mbps=0.001 timeout_s=1", "deliver a message within timeout_s=1"
        ),
        (
            "pipeline.times={segments:[1],input_gradients:[1],heads:[]}",
            "pipeline.times: got {'segments': 1, 'input_gradients': 1, 'heads': 0}; allowed: ",
        ),
    ],
)
def test_rows_of_wrong_overrides(refuse, words, message):
    assert message in refuse(*words.split())


def test_a_run_dir_is_taken_literally(accept, folder):
    accept("run_dir=a${b}c")
    assert "run_dir: a\\${b}c" in (folder / "a${b}c" / "config.yaml").read_text()


WORKER = {
    **{"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    **{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


def test_a_run_id_that_is_left_over_is_no_launcher(accept):
    accept(TORCHELASTIC_RUN_ID="none")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("RANK", "2", "a whole number from 0 to 1"),
        ("RANK", "two", "a whole number from 0 to 1"),
        ("WORLD_SIZE", "0", "a whole number from 1 to"),
        ("LOCAL_WORLD_SIZE", "3", "a whole number from 1 to 2"),
        ("LOCAL_RANK", "", "a whole number from 0 to 1"),
        ("MASTER_PORT", "x", "a whole number from 1 to 65535"),
        ("MASTER_ADDR", "", "the address of rank 0"),
    ],
)
def test_variables_of_a_launcher_that_do_not_fit(refuse, key, value, allowed):
    message = refuse(**{**WORKER, key: value})
    assert f"{key}: got {value!r}; allowed: {allowed}" in message
    assert "Unset TORCHELASTIC_RUN_ID" in message


def test_a_variable_of_a_launcher_that_is_missing(refuse):
    assert "WORLD_SIZE: got None" in refuse(TORCHELASTIC_RUN_ID="none", RANK="0")


def test_long_values_are_clipped_in_messages():
    assert len(clipped("a" * 5000)) < 400
    assert clipped("short") == "short"
