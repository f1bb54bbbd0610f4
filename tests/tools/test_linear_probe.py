"""Linear probes of data whose classes are known, and of a small run."""

from __future__ import annotations

import json

import pytest
import torch
from probe import Read, main, probe, requests, vector

from dglpipe.runtime.run_dir import RunDir
from harness.configs import small


def three_classes(count):
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(count))
    points = torch.stack([labels.float(), 7.0 + 0 * labels], 1) + 0.05 * noise
    return Read([points], labels, [])


def test_separable_classes_are_found_and_labels_by_chance_are_not():
    fitted, tested = three_classes(600), three_classes(300)
    assert probe(fitted, tested, 0, 3) == 1
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    assert probe(fitted._replace(labels=fitted.labels[order]), tested, 0, 3) < 0.5


def test_an_output_becomes_a_vector():
    maps = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert vector(maps, 0, 2).shape == (2, 12)
    assert torch.equal(vector(maps, 0, 1), maps.mean((2, 3)))
    assert torch.equal(vector(maps.movedim(1, 3), 2, 1), maps.mean((2, 3))), "channels last"
    assert torch.equal(vector(maps[:, :, :1, :1], 0, 2), maps[:, :, 0, 0]), "a smaller map stays"
    assert torch.equal(vector(maps.flatten(2), 1, 2), maps.flatten(2).mean(1)), "tokens"
    assert torch.equal(vector(maps.flatten(1), 0, 2), maps.flatten(1))


def test_the_images_of_the_probes_are_spread_over_the_split():
    asked = [request.indices.tolist() for request in requests(True, 5, 9, 3)]
    assert asked == [[0, 1, 3], [5, 7]]


def test_a_finished_run(start, run_dir, tmp_path, monkeypatch, capsys):
    words = ("pipeline.stages=3", "pipeline.processes=1", "epochs=3", f"run_dir={run_dir}")
    assert start("train", *small(*words)).wait() == 0
    summary = json.loads(RunDir(run_dir).summary.read_text())
    output = tmp_path / "probe.json"
    monkeypatch.setattr("sys.argv", ["probe", str(run_dir), "--output", str(output)])
    main()
    stages = json.loads(output.read_text())["stages"]
    assert [one["exit"] for one in stages] == pytest.approx(summary["test"]["accuracy"])
    assert [one["stage"] for one in stages] == [0, 1, 2]
    assert stages[2]["probe"] is None, "the network has its own linear classifier"
    assert min(one["probe"] for one in stages[:2]) > 0.5
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_folder_without_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["probe", str(tmp_path)])
    with pytest.raises(SystemExit, match="probe: run: "):
        main()
