"""Checkpoints of one process: the thread that writes them, and what comes back."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import nn

from dglpipe.errors import DamagedError, StorageError
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.runtime import checkpoint
from dglpipe.runtime.checkpoint import Checkpoints
from harness.configs import layout, make_config

CPU = Device(torch.device("cpu"), "gloo")


def make_stage(config, seed):
    torch.manual_seed(seed)
    segments = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    head = nn.Linear(4 * 36, 10)
    module = StageModule(segments, {"head": head})
    return Stage(0, module, config.stage(0), Learning(), CPU, RunLength(8, 4), 0)


def learn(stage, steps):
    for step in steps:
        torch.manual_seed(step)
        stage.learn(torch.randn(6, 1, 8, 8), torch.arange(6), step, None)


@pytest.fixture
def config():
    return make_config("optimizer=adam", "resume=auto", "checkpoint.keep=2")


@pytest.fixture
def checkpoints(config, tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", config, layout(1), 0)
    yield made
    made._thread.shutdown()


def test_a_restored_stage_goes_on_with_the_same_bits(config, checkpoints):
    one, other = make_stage(config, 1), make_stage(config, 2)
    learn(one, range(1, 4))
    parts = {"more": {0: {"draws": 7}}, "open_lines": {0: one.open_totals()}}
    checkpoints.save(3, [one], parts, checkpoints.complete)
    learn(one, range(4, 7))  # the copy does not change while it is written
    checkpoints.drain()
    assert checkpoints.newest() == 3
    restored = checkpoints.restore(3, [other])
    assert restored["more"] == {0: {"draws": 7}}
    other.restore_totals(restored["open_lines"][0])
    learn(other, range(4, 7))
    assert one.totals() == other.totals()
    states = [stage.module.state_dict() for stage in (one, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for (_, mine), (_, others) in zip(
        one.optimizer.state.items(), other.optimizer.state.items(), strict=True
    ):
        for key, value in mine.items():
            assert torch.equal(value, others[key])
            assert value.stride() == others[key].stride()


def test_one_checkpoint_is_written_at_a_time(config, checkpoints, monkeypatch):
    """Training goes on while a thread writes; the next checkpoint waits."""
    stage, gate, written = make_stage(config, 1), threading.Event(), []
    write = checkpoint.write_bytes

    def write_when_told(path, content):
        assert gate.wait(20)
        write(path, content)
        written.append(path.parent.name)

    monkeypatch.setattr(checkpoint, "write_bytes", write_when_told)
    checkpoints.save(1, [stage], {}, checkpoints.complete)
    checkpoints.check()
    assert written == []
    threading.Timer(0.1, gate.set).start()
    checkpoints.save(2, [stage], {}, checkpoints.complete)
    assert "step_00000001" in written
    checkpoints.drain()
    assert checkpoints.newest() == 2


def test_an_error_of_the_thread_comes_with_its_path_once(config, checkpoints, tmp_path):
    stage = make_stage(config, 1)
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints.save(1, [stage], {}, checkpoints.complete)
    with pytest.raises(StorageError, match="checkpoints"):
        while True:
            checkpoints.check()
    checkpoints.drain()


def test_a_vanished_run_directory_is_not_made_again(config, tmp_path):
    made = Checkpoints(tmp_path / "gone" / "checkpoints", config, layout(1), 0)
    made.save(1, [make_stage(config, 1)], {}, made.complete)
    with pytest.raises(StorageError, match=r"No such file or directory: .*gone/checkpoints"):
        made.drain()
    assert not (tmp_path / "gone").exists()


def test_a_state_that_cannot_be_saved_is_named(config, checkpoints):
    with pytest.raises(TypeError, match="state/parts/more: got object; a checkpoint holds"):
        checkpoints.save(1, [make_stage(config, 1)], {"more": {0: object()}}, checkpoints.complete)


def test_checkpoints_of_other_settings_belong_to_another_run(config, checkpoints, tmp_path):
    stage = make_stage(config, 1)
    checkpoints.save(1, [stage], {}, checkpoints.complete)
    checkpoints.drain()
    config.timeout_s = 99.0
    assert Checkpoints(tmp_path / "checkpoints", config, layout(1), 0).newest() == 1
    config.seed = 5
    with pytest.raises(DamagedError, match="is of another run or step: run: got"):
        Checkpoints(tmp_path / "checkpoints", config, layout(1), 0).newest()
    config.resume = "never"
    assert Checkpoints(tmp_path / "checkpoints", config, layout(1), 0).newest() == 0


def test_nothing_but_files_of_the_umask(config, checkpoints):
    before = os.umask(0o027)
    try:
        checkpoints.save(1, [make_stage(config, 1)], {}, checkpoints.complete)
        checkpoints.drain()
    finally:
        os.umask(before)
    files = [path for path in checkpoints._folder.path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}
    assert sorted(path.name for path in files) == ["manifest.json", "stage_0.safetensors"]
