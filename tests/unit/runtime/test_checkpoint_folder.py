"""Checkpoints on the disk: which one a resumed run uses, and what it says about the others."""

from __future__ import annotations

import itertools
import logging
import os
import shutil

import pytest
import torch

from dglpipe.errors import DamagedError, RunDirError
from dglpipe.files import write_bytes
from dglpipe.manifest import FileEntry, read_manifest, write_manifest
from dglpipe.pipeline.state_file import snapshot
from dglpipe.runtime.checkpoint_folder import CheckpointFolder
from harness.configs import layout

WORLD = layout(2, 2, 2)


def write(folder, step, keep=9):
    """A complete checkpoint of two stages and two replicas."""
    folder.path.mkdir(parents=True, exist_ok=True)
    files = []
    for stage, replica in itertools.product(range(2), range(2)):
        state = {"value": torch.full((4,), float(100 * step + 10 * stage + replica))}
        content = snapshot(state).to_bytes(folder.metadata(step, stage, replica))
        path = folder.file(step, stage, replica)
        write_bytes(path, content)
        files.append(FileEntry.of(path.name, content).to_json())
    folder.complete(step, files, keep)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Checkpoints of steps 5 and 10; warnings are recorded."""
    made = CheckpointFolder(tmp_path / "checkpoints", "this run", WORLD)
    write(made, 5)
    write(made, 10)
    monkeypatch.setattr(logging.getLogger("dglpipe"), "propagate", True)
    return made


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def swap(one, other):
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def adopt(folder, step):
    """Writes a manifest that fits the present files."""
    content = read_manifest(folder.manifest(step))
    names = [entry["file"] for entry in content["files"]]
    where = folder.manifest(step).parent
    content["files"] = [FileEntry.of(n, (where / n).read_bytes()).to_json() for n in names]
    write_manifest(folder.manifest(step), content)


def swap_with_manifest(folder):
    swap(folder.file(10, 0, 0), folder.file(10, 1, 0))
    adopt(folder, 10)


def other_step(folder):
    shutil.copy(folder.file(5, 1, 1), folder.file(10, 1, 1))
    adopt(folder, 10)


def other_run(folder):
    other = CheckpointFolder(folder.path.parent / "other", "another run", WORLD)
    write(other, 10)
    shutil.copytree(other.manifest(10).parent, folder.manifest(10).parent, dirs_exist_ok=True)


def other_runs_file(folder):
    manifest = folder.manifest(10).read_bytes()
    other_run(folder)
    folder.manifest(10).write_bytes(manifest)
    adopt(folder, 10)


def lose_an_entry(folder):
    content = read_manifest(folder.manifest(10))
    del content["files"][2]
    write_manifest(folder.manifest(10), content)


DAMAGE = {
    "flip": (lambda f: flip(f.file(10, 1, 0)), "stage_1_0.safetensors: sha256: got"),
    "zero": (
        lambda f: f.file(10, 0, 1).write_bytes(bytes(f.file(10, 0, 1).stat().st_size)),
        "stage_0_1.safetensors: sha256: got",
    ),
    "cut": (lambda f: os.truncate(f.file(10, 0, 1), 40), "stage_0_1.safetensors: size: got 40"),
    "delete": (lambda f: f.file(10, 0, 0).unlink(), "stage_0_0.safetensors: the file is missing"),
    "swap": (
        lambda f: swap(f.file(10, 0, 0), f.file(10, 1, 0)),
        "stage_0_0.safetensors: sha256: got",
    ),
    "swap with manifest": (swap_with_manifest, "of another run or place: stage: got 1"),
    "other step": (other_step, "stage_1_1.safetensors: the file is of another run or place: step"),
    "whole folder of another run": (other_run, "manifest.json: the manifest is of another run"),
    "file of another run": (other_runs_file, "of another run or place: run: got another run"),
    "flip manifest": (lambda f: flip(f.manifest(10)), "manifest.json: "),
    "empty manifest": (lambda f: f.manifest(10).write_text(""), "manifest.json: "),
    "manifest of the other step": (
        lambda f: shutil.copy(f.manifest(5), f.manifest(10)),
        "manifest.json: the manifest is of another run or step: step: got 5",
    ),
    "no entry": (lose_an_entry, "manifest.json: there is no entry for stage_1_0.safetensors"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(folder, caplog, how):
    assert folder.newest() == 10
    assert caplog.messages == []
    damage, expected = DAMAGE[how]
    damage(folder)
    assert folder.newest() == 5
    assert expected in caplog.messages[0]
    assert "The checkpoint of step 5 is used instead" in caplog.messages[0]
    assert folder.read(5, 1, 0)["value"].tolist() == [510.0] * 4
    # A process that reads another file than rank 0 has verified does not go on with it.
    with pytest.raises(DamagedError):
        for stage, replica in itertools.product(range(2), range(2)):
            folder.read(10, stage, replica)


def test_without_an_intact_checkpoint_the_damaged_files_are_listed(folder):
    flip(folder.file(10, 1, 0))
    folder.file(10, 0, 0).unlink()
    folder.manifest(5).write_text("{")
    with pytest.raises(DamagedError) as caught:
        folder.newest()
    text = str(caught.value)
    for path in (folder.file(10, 1, 0), folder.file(10, 0, 0), folder.manifest(5)):
        assert f"{path}: " in text
    assert f"delete {folder.path} or give another run_dir" in text
    assert folder.steps() == [5, 10], "nothing is deleted"


def test_a_checkpoint_without_a_manifest_is_incomplete(folder, caplog):
    folder.manifest(10).unlink()
    assert folder.newest() == 5
    folder.manifest(5).unlink()
    assert folder.newest() == 0
    assert caplog.messages == []


def test_checkpoints_after_the_resumed_step_are_deleted(folder):
    (folder.path / "notes").mkdir()
    (folder.path / "step_x").mkdir()
    folder.drop_after(5)
    left = sorted(item.name for item in folder.path.iterdir())
    assert left == ["notes", "step_00000005", "step_x"]


def test_only_the_last_complete_checkpoints_stay(folder):
    folder.manifest(5).unlink()
    write(folder, 15, keep=2)
    assert folder.steps() == [10, 15]
    assert not folder.manifest(5).parent.exists()


def test_checkpoints_of_an_earlier_version_are_named(tmp_path):
    folder = CheckpointFolder(tmp_path, "this run", WORLD)
    assert folder.newest() == 0
    old = tmp_path / "step_00000005" / "stage_0.pt"
    write_bytes(old, b"zip")
    with pytest.raises(RunDirError, match=r"stage_0\.pt is a checkpoint of an earlier version"):
        folder.newest()
