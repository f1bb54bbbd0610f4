"""The accuracy study: which runs are made, in which order, and what is shown."""

from __future__ import annotations

import json

import pytest

from benchmarks.accuracy_cifar10 import accuracy, pictures, speed, studies, tables
from benchmarks.accuracy_cifar10.results import RESULTS, Results, probe_lines
from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.runtime.plan import plan_layout
from harness.configs import in_test_all

SYNTHETIC = ("data=synthetic", "data.samples=8", "batch_size=4", "optimizer.lr=0.1")


def names():
    return [setting.name for setting in studies.settings()]


def test_names_are_unique_and_tuning_names_exist():
    assert len(set(names())) == len(names())
    assert {one.tuned for one in studies.settings()} <= set(names())


FLAT = ("~data.flip", "~data.crop_padding", "~data.crop_border")
"""Synthetic images are not augmented."""
QUICK = (
    "backprop",
    "cnn_sr_8x2 K=6",
    "alternatives: cDNI",
    "S=1.2 M=50",
    "real K=2, S=1",
    "fastcnn: K=4",
)


@pytest.mark.parametrize("name", [one if one in QUICK else in_test_all(one) for one in names()])
def test_every_setting_composes(name):
    setting = next(one for one in studies.settings() if one.name == name)
    words = [word for word in setting.words if not word.startswith("batch_size")]
    one = [] if name.startswith("real") else ["pipeline.processes=1"]
    flat = FLAT if name.startswith("fastcnn") else ()
    config = compose(parse_arguments([*words, *SYNTHETIC, *one, *flat]))
    plan_layout(config.pipeline, config.method, cores=2)


def test_a_setting_waits_for_its_learning_rate():
    first = studies.next_runs({})
    assert {run.study for run in first} == {"tuning"}
    assert len({run.key for run in first}) == len(first)
    tuned = {run.key: 0.5 for run in first if run.setting == "backprop"}
    tuned["tuning/backprop/0.2"] = 0.6
    runs = [run for run in studies.next_runs(tuned) if run.study == "stages"]
    assert [run.key for run in runs] == [f"stages/backprop/{seed}" for seed in (0, 1, 2)]
    assert all("optimizer.lr=0.2" in run.words and "epochs=10" in run.words for run in runs)
    after = studies.next_runs({**tuned, "stages/backprop/1": 0.8})
    assert "stages/backprop/1" not in {run.key for run in after}


def test_nothing_is_left_at_the_end():
    done = {}
    while runs := studies.next_runs(done):
        done |= {run.key: 0.5 for run in runs}
    makes = {one.name: one.seeds for one in studies.settings()}
    assert sum(makes.values()) == sum(not key.startswith("tuning/") for key in done)


def test_words_are_given_once():
    done = {}
    while runs := studies.next_runs(done):
        for run in runs:
            keys = [word.partition("=")[0] for word in run.words]
            assert len(set(keys)) == len(keys), run.words
            done[run.key] = 0.5


def finished(key, exits, ensemble):
    own = {"exits": exits, "ensemble": ensemble, "flops_per_sample": 2 + len(exits)}
    return {key: {**own, "seed": 0}}


def test_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "STEPS", tmp_path / "none.json")
    results = Results(tmp_path / "none.json")
    assert tables.tables(results) == "No accuracy is stored yet.\n"
    results.runs |= finished("stages/backprop/0", [0.8], 0.8)
    results.runs |= finished("stages/backprop/1", [0.9], 0.9)
    results.runs |= finished("alternatives/alternatives: DNI/0", [None, None, 0.25], 0.25)
    results.runs |= finished("stages/mlp_sr K=2/0", [0.7, 0.75], 0.76)
    text = tables.tables(results)
    assert "| mlp_sr K=2 | 1 | 1.33 | 70.0, 75.0 | 76.0 |" in text
    assert "| backprop | 2 | 1.00 | 85.0 (80.0-90.0) | 85.0 (80.0-90.0) |" in text
    assert "| alternatives: DNI | 1 | - | 25.0 | 25.0 |" in text


def test_the_table_of_speeds():
    traffic = {"link_bytes_per_sample": 2048, "down_bytes_per_sample": 512}
    rows = {
        "backprop": {**traffic, "samples_per_second": {"1": [10.0, 20.0]}},
        "man": {**traffic, "samples_per_second": {"2": [15.0, 36.0], "6": [5.0, 10.0]}},
    }
    (*_, line) = tables.speed_table(rows)
    assert line == "| man | 1.65 (1.50-1.80) | 0.50 (0.50-0.50) | 2.0 | 0.5 |"


@pytest.mark.slow
def test_a_speed_is_measured(monkeypatch):
    small = ("data=synthetic", "data.samples=512", "epochs=4", "evaluate.every=0", "model.width=2")
    monkeypatch.setattr(speed, "LENGTH", small)
    words = [one for one in studies.BASE if not one.startswith("model.width")]
    setting = studies.Setting(
        "objectives", "man", (*words, *studies.dgl("cnn_sr", 6), "local=man"), ""
    )
    row = {"samples_per_second": {}}
    speed.measure(setting, row)
    assert all(len(row["samples_per_second"][p]) == 1 for p in ("2", "6"))
    assert row["down_bytes_per_sample"] > 0


def test_the_table_of_steps():
    mib = 2**20
    row = {"experiment": "imagenet_vgg13", "steps": 100, "first_loss": [2.3, 2.4]}
    row |= {"last_loss": [1.0, 0.5], "planned_bytes": [3 * mib] * 2, "measured_bytes": [mib] * 2}
    (*_, line) = tables.steps_table([row])
    assert line == "| imagenet_vgg13, 100 | 2.30, 2.40 | 1.00, 0.50 | 3, 3 | 1, 1 |"


def test_the_pictures_have_what_is_stored(tmp_path):
    results = Results(tmp_path / "none.json")
    for seed, accuracies in enumerate(([0.8], [0.9])):
        results.runs |= finished(f"stages/backprop/{seed}", accuracies, 0.8)
        results.runs |= finished(f"stages/mlp_sr K=6/{seed}", [0.5, *accuracies], 0.7)
    files = pictures.draw(results, tmp_path)
    assert [file.name for file in files] == ["accuracy_stages.png", "accuracy_work.png"]
    assert all(file.stat().st_size > 5000 for file in files)
    assert pictures.accuracies(results, "stages", "mlp_sr K=6") == [80.0, 90.0]
    assert pictures.draw(Results(tmp_path / "none.json"), tmp_path) == []


def test_the_table_of_convergence_has_the_first_and_the_last_epoch(tmp_path):
    lines = [
        {"kind": "train", "epoch": 1, "step": 2, "stage": 0},
        *(
            {
                "kind": "probe",
                "epoch": epoch,
                "stage": j,
                "gradient_norm": epoch + j,
                "drift": drift,
            }
            for epoch, drift in ((1, None), (1, 0.5), (1, 0.7), (2, 0.1))
            for j in (0, 1)
        ),
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    measured = probe_lines(file)
    assert measured["drift"] == {"0": [0.6, 0.1], "1": [0.6, 0.1]}
    assert measured["gradient_norm"]["1"] == [2, 3]
    assert "| stage 1 | 2.000, 3.000 | 0.600, 0.100 |" in tables.convergence_table(measured)


def test_the_documents_have_the_stored_figures():
    for document, text in tables.documents(Results(RESULTS)).items():
        assert tables.written(document) == text


@pytest.mark.slow
def test_a_run_is_made_and_stored(tmp_path):
    results = Results(tmp_path / "results.json")
    words = ["max_steps=2", "data=synthetic", "data.samples=256", "model.width=4", "epochs=2"]
    words += ["probe.every=1", "probe.batch_size=64"]
    name = studies.MEASURED
    key = f"stages/{name}/0"
    run = studies.Run(key, "stages", name, 0, (*studies.dgl("mlp_sr", 2), "seed=0"))
    workers = accuracy.Workers(results, tmp_path, words, 1)
    workers._train(run)
    assert not workers.failed
    assert (tmp_path / "convergence.png").is_file()
    stored = json.loads((tmp_path / "results.json").read_text())["runs"][key]
    assert len(stored["exits"]) == 2
    assert Results(tmp_path / "results.json").done() == {key: stored["exits"][1]}
