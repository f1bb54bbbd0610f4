"""The results of a finished run: exits, and the network under its own keys."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

import dglpipe
from dglpipe.cli.plan import plan
from dglpipe.config import from_yaml, to_tree, to_yaml
from dglpipe.data import Request, open_data
from dglpipe.errors import ConfigError, RunDirError, UserError
from dglpipe.manifest import FileEntry, beside, read_manifest, read_suspect, write_manifest
from dglpipe.models.pretrained import initialise
from dglpipe.pipeline.weights import sha256
from dglpipe.runtime import run
from dglpipe.runtime.evaluate import evaluate_run
from dglpipe.runtime.inference import export_run
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.run_dir import RunDir
from harness.commands import Command
from harness.configs import SMALL, build_stages, in_test_all, make_config, small
from harness.paths import ROOT

STAGES = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a run of ResNet-18 in one process."""
    folder = tmp_path_factory.mktemp("trained")
    shape = ("model=resnet18", f"pipeline.stages={STAGES}", "pipeline.processes=1", "max_steps=2")
    run = Command(("train", *SMALL, *shape, "run_dir=run"), folder, {})
    assert run.wait() == 0, run.stderr
    return folder / "run", make_config(*shape)


def images(config):
    source = open_data(config.data, config.seed, 3)
    rows = torch.arange(source.info.test)
    ((batch, labels),) = source.load().batches([Request(False, 1, rows)])
    return batch, labels


@torch.no_grad()
def test_exits_equal_the_exits_of_the_run(finished):
    path, config = finished
    network = dglpipe.load(path)
    batch, labels = images(config)
    reported = json.loads(RunDir(path).summary.read_text())["test"]
    exits = network.exits(batch)
    assert len(exits) == STAGES
    for j, logits in enumerate(exits):
        assert torch.equal(network(batch, exit=j), logits)
        found = (logits.argmax(dim=1) == labels).float().mean().item()
        assert found == pytest.approx(reported["accuracy"][j], abs=1e-6)
    assert torch.equal(network(batch), exits[-1])
    ensemble = network.ensemble(batch)
    assert torch.allclose(ensemble.sum(dim=1), torch.ones(len(batch)))
    hits = (ensemble.argmax(dim=1) == labels).float().mean().item()
    assert hits == pytest.approx(reported["ensemble_accuracy"], abs=1e-6)
    with pytest.raises(ConfigError, match=r"exit: got 3; allowed: one of \[0, 1, 2\]"):
        network(batch, exit=3)
    assert torch.equal(network(batch, exit=numpy.int64(0)), exits[0])
    for wrong in (1.0, "0", True, -1):
        with pytest.raises(ConfigError, match="exit: got"):
            network(batch, exit=wrong)


@torch.no_grad()
def test_an_export_is_torchvisions_own_network(finished, start, tmp_path):
    path, config = finished
    run = start("export", f"run={path}", f"output={tmp_path / 'a.safetensors'}", "exits=true")
    assert run.wait() == 0, run.stderr
    tensors = load_file(tmp_path / "a.safetensors")
    exits = {key for key in tensors if key.startswith("exits.")}
    assert {key.split(".")[1] for key in exits} == {"0", "1"}
    network = resnet18(num_classes=10)
    network.load_state_dict({k: v for k, v in tensors.items() if k not in exits}, strict=True)
    batch, _ = images(config)
    expected = dglpipe.load(path)(batch)
    assert torch.allclose(network.eval()(batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run=RUN",), "allowed: run=RUN_DIR output=FILE.safetensors"),
        (("run=RUN", "output=a.bin"), "ends in .safetensors"),
        (("run=RUN", "output=a.safetensors", "exits=maybe"), "allowed: run=RUN_DIR"),
        (("run=nowhere", "output=a.safetensors"), "holds no run"),
        (("run=RUN", "output=/proc/none/a.safetensors"), "/a.safetensors; cannot write: "),
        (("run=RUN", "output=RUN/final/stage_0.safetensors"), "allowed: a file outside of"),
    ],
)
def test_wrong_words_of_an_export(words, expected, finished, start):
    weights = RunDir(finished[0]).final(0).read_bytes()
    run = start("export", *(word.replace("RUN", str(finished[0]), 1) for word in words))
    assert run.wait() == 2
    assert expected in run.stderr
    assert RunDir(finished[0]).final(0).read_bytes() == weights


def test_the_python_of_the_documents_runs(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/python.md").read_text()
    names = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert names["x"].shape == names["logits"].shape == names["weighted"].shape == (2, 10)
    assert not torch.equal(names["early"], names["logits"])


def test_a_run_that_lost_its_results_is_named(finished, start, tmp_path):
    for name in ("final/stage_1.safetensors", "final/manifest.json"):
        run_dir = tmp_path / Path(name).stem
        shutil.copytree(finished[0], run_dir)
        (run_dir / name).unlink()
        with pytest.raises(RunDirError, match=rf"^run: .*{name} cannot be read"):
            dglpipe.load(run_dir)
    run = start("export", f"run={run_dir}", f"output={tmp_path / 'a.safetensors'}")
    assert run.wait() == 2
    assert "manifest.json cannot be read" in run.stderr


def refuse_damaged(run_dir, path):
    """Checks that every command that reads the run names the damaged file."""
    output = run_dir / "a.safetensors"
    for reader in (dglpipe.load, lambda path: export_run(path, output), evaluate_run):
        with pytest.raises(RunDirError, match=f"^run: {path} cannot be read") as caught:
            reader(run_dir)
    assert not output.exists()
    return str(caught.value)


def adopt(files, stage):
    """Writes a manifest that fits the present file of `stage`."""
    content = read_manifest(files.manifest)
    path = files.final(stage)
    entry = FileEntry.of(path.name, path.read_bytes())
    content["stages"][stage] |= {**entry.to_json(), "weights_sha256": sha256(load_file(path))}
    write_manifest(files.manifest, content)


@pytest.mark.slow
def test_the_weights_of_another_stage_are_refused(finished, tmp_path):
    """Also where the manifest fits them."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    files = RunDir(run_dir)
    shutil.copy(files.final(0), files.final(1))
    assert "(size: got" in refuse_damaged(run_dir, files.final(1))
    adopt(files, 1)
    assert "where the stage has" in refuse_damaged(run_dir, files.final(1))
    tensors = load_file(RunDir(finished[0]).final(1))
    key = next(key for key in tensors if key.endswith("running_mean"))
    save_file({**tensors, key: torch.zeros(3)}, files.final(1))
    adopt(files, 1)
    assert f"({key}: got (3,) where the stage has" in refuse_damaged(run_dir, files.final(1))
    del tensors[key]
    save_file(tensors, files.final(1))
    adopt(files, 1)
    assert f"({key}: got nothing where" in refuse_damaged(run_dir, files.final(1))
    files.final(1).write_bytes(b"torn")
    refuse_damaged(run_dir, files.final(1))


@pytest.mark.parametrize(
    "entry", ["sha256", *map(in_test_all, ("weights_sha256", "config_sha256"))]
)
def test_a_manifest_with_other_hashes_is_refused(finished, tmp_path, entry):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    files = RunDir(run_dir)
    text = re.sub(
        rf'"{entry}": "[0-9a-f]+"', f'"{entry}": "{"0" * 64}"', files.manifest.read_text()
    )
    files.manifest.write_text(text)
    path = files.config if entry == "config_sha256" else files.manifest
    message = refuse_damaged(run_dir, path)
    assert f"{entry}" in message
    assert path == files.config or "stage_0.safetensors" in message
    # The same with a manifest that is whole, as if the files had changed.
    write_manifest(files.manifest, read_suspect(files.manifest)[0])
    paths = {"sha256": files.final(0), "weights_sha256": files.manifest}
    assert entry in refuse_damaged(run_dir, paths.get(entry, files.config))


def test_a_changed_configuration_is_refused(finished, tmp_path):
    """One digit, which leaves a configuration that can be read."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    files = RunDir(run_dir)
    text = files.config.read_text()
    assert "seed: 0" in text
    files.config.write_text(text.replace("seed: 0", "seed: 1"))
    assert "config_sha256" in refuse_damaged(run_dir, files.config)


@pytest.mark.parametrize("text", ["", '{"status": "finis', '{"status": "finisheg"}', "[]"])
def test_a_damaged_summary_is_named(finished, tmp_path, text):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    RunDir(run_dir).summary.write_text(text)
    refuse_damaged(run_dir, RunDir(run_dir).summary)


def test_an_export_is_verified_where_it_is_read(finished, tmp_path):
    path, _ = finished
    output = tmp_path / "a.safetensors"
    export_run(path, output)
    assert read_manifest(beside(output))["files"][0]["size"] == output.stat().st_size
    network = resnet18(num_classes=10)
    initialise(network, str(output))
    content = bytearray(output.read_bytes())
    content[-1] ^= 1
    output.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"a\.safetensors: sha256: got .*Export the network again"
    ):
        initialise(network, str(output))
    beside(output).unlink()
    initialise(network, str(output))


@pytest.mark.parametrize("torn", [None, "{a: [1,"])
def test_a_run_that_lost_its_configuration_is_named(finished, start, tmp_path, torn):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    files = RunDir(run_dir)
    files.config.unlink()
    if torn is not None:
        files.config.write_text(torn)
    refuse_damaged(run_dir, files.config)
    run = start("export", f"run={run_dir}", f"output={tmp_path / 'a.safetensors'}")
    assert run.wait() == 2
    assert run.stderr.startswith(f"dglpipe: run: {files.config} cannot be read")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("classes", None, "no key 'classes'"),
        ("classes", 7, "not iterable"),
        ("data", 7, "not a mapping"),
        ("channels", "3", "images of shape"),
        ("height", None, "height"),
    ],
)
def test_a_manifest_of_something_else_is_named(finished, tmp_path, key, value, expected):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    manifest = RunDir(run_dir).manifest
    tree = read_manifest(manifest)
    place = tree if key == "data" else tree["data"]
    del place[key]
    place |= {} if value is None else {key: value}
    write_manifest(manifest, tree)
    assert expected in refuse_damaged(run_dir, manifest)


def with_exits():
    """A network that has exits of its own, by name."""
    body = [torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten()]
    exits = torch.nn.Sequential(torch.nn.Linear(64, 10))
    return torch.nn.Sequential(OrderedDict(body=torch.nn.Sequential(*body), exits=exits))


def test_an_export_refuses_keys_that_look_like_exits(tmp_path):
    words = ("model=custom", f"model.target={__name__}:with_exits", "max_steps=1")
    words += ("pipeline.processes=1", "run_dir=run")
    run = Command(("train", *SMALL, *words), tmp_path, {"PYTHONPATH": str(Path(__file__).parent)})
    assert run.wait() == 0, run.stderr
    output = tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match=r"^exits: got True; allowed: false .* exits\.0\.bias"):
        export_run(tmp_path / "run", output, exits=True)
    assert export_run(tmp_path / "run", output) == 6


def test_an_output_that_cannot_be_written_fails_before_planning(tmp_path, monkeypatch):
    monkeypatch.setattr("dglpipe.runtime.plan.plan_run", lambda _: pytest.fail("it was made"))
    for path in (tmp_path / "nowhere" / "plan.json", tmp_path):
        with pytest.raises(
            UserError, match=r"^output: got .*; allowed: a file in an existing directory"
        ):
            plan([f"output={path}"])


def test_loading_what_is_no_run(tmp_path):
    with pytest.raises(RunDirError, match="holds no run"):
        dglpipe.load(tmp_path)


def test_plan(start, tmp_path):
    words = small("pipeline.stages=3", "pipeline.split=auto", "head=linear")
    run = start("plan", *words, f"output={tmp_path / 'plan.json'}")
    assert run.wait() == 0, run.stderr
    assert "predicted speed-up" in run.stdout
    reported = json.loads((tmp_path / "plan.json").read_text())
    stages = reported["per_stage"]
    assert len(stages) == 3
    work = [stage["flops_per_sample"] for stage in stages]
    assert reported["predicted_speed_up"] == pytest.approx(sum(work) / max(work))
    assert reported["bottleneck"] == f"stage {work.index(max(work))}"
    loader = {"stage": "loader", "output_shape": [1, 8, 8]}
    assert reported["loader"] == {**loader, "seconds_per_step": None, "workers": None}
    assert stages[-1]["output_shape"] is None
    assert all(stage["memory_bytes"] > 0 for stage in stages)
    assert not (tmp_path / "run").exists()


def test_an_automatic_cut_is_written_down_as_a_list(start, run_dir):
    words = ("pipeline.split=auto", "pipeline.processes=1", "max_steps=1", f"run_dir={run_dir}")
    run = start("train", *small(*words))
    assert run.wait() == 0, run.stderr
    summary = json.loads(RunDir(run_dir).summary.read_text())
    cut = len(summary["per_stage"][0]["segments"])
    assert f"split:\n  - {cut}\n" in RunDir(run_dir).config.read_text()


@pytest.mark.parametrize("by_stage", [*map(in_test_all, (False, True))])
def test_a_resumed_run_keeps_its_cut(tmp_path, monkeypatch, by_stage):
    """A second measurement could give another cut."""
    config = make_config("pipeline.split=auto", "pipeline.cost=time", "pipeline.stages=2")
    config.run_dir, config.resume = str(tmp_path / "run"), "auto"
    started = []
    monkeypatch.setattr(run, "launch", lambda plan, *_: started.append(plan.config) or {})
    assert dglpipe.train(to_tree(config)) == {}  # a tree, as config.yaml has it
    files = RunDir(tmp_path / "run")
    other = {"segments": [9.0, *[1.0] * 5], "input_gradients": [0.0] * 6, "heads": [0.0] * 5}
    changed = from_yaml(files.config.read_text())
    other = [other, other] if by_stage else other
    changed.pipeline.split, changed.pipeline.times = [1], other
    files.config.write_text(to_yaml(changed))
    as_it_was = copy.deepcopy(config)
    dglpipe.train(config)
    assert config == as_it_was, "the configuration that was passed in is not modified"
    dglpipe.train(changed)
    assert [one.pipeline.split for one in started[1:]] == [[1], [1]]
    assert from_yaml(files.config.read_text()).pipeline.times == other
    assert len(started[0].pipeline.times["segments"]) == 6


def test_initial_weights_equal_the_file(finished, tmp_path):
    path, config = finished
    export_run(path, tmp_path / "weights.safetensors")
    config = copy.deepcopy(config)
    config.model.weights = str(tmp_path / "weights.safetensors")
    spec = build_stages(config, open_images(config).info, STAGES)
    drawn = {key: value for module in spec.modules for key, value in state(module)}
    expected = load_file(tmp_path / "weights.safetensors")
    assert drawn.keys() == expected.keys()
    assert all(torch.equal(drawn[key], expected[key]) for key in expected)


def state(module):
    return module.state_dict().items()


def test_weights_that_do_not_fit_end_with_status_2(start, tmp_path):
    torch.save({"fc.weight": torch.zeros(10, 512)}, tmp_path / "part.pt")
    words = ("model=resnet18", f"model.weights={tmp_path / 'part.pt'}", "run_dir=run")
    run = start("train", *words)
    assert run.wait() == 2
    assert "model.weights: got" in run.stderr
    assert "missing: conv1.weight, bn1.weight" in run.stderr


def test_split():
    network = resnet18(num_classes=10).eval()
    batch = torch.randn(2, 3, 64, 64)
    for at in (None, [1, 2]):
        parts = dglpipe.split(network, 3, (3, 64, 64), at)
        assert len(parts) == 3
        with torch.no_grad():
            assert torch.equal(torch.nn.Sequential(*parts)(batch), network(batch))
    assert all(weights.device.type == "cpu" for weights in network.parameters())
    with pytest.raises(ConfigError, match=r"^stages: got 99; allowed: 1 to 9"):
        dglpipe.split(network, 99, (3, 64, 64))
