"""Run directories: checks, lock, status and paths."""

from __future__ import annotations

import json
import logging

import pytest

from dglpipe.config import to_yaml
from dglpipe.errors import RunDirError
from dglpipe.files import write_json, write_whole
from dglpipe.runtime.run_dir import RunDir, default_path
from harness.configs import make_config


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "run")


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Records the warnings of the package, also after a test that ran a worker."""
    monkeypatch.setattr(logging.getLogger("dglpipe"), "propagate", True)
    return caplog


def test_a_new_directory_may_be_used(run_dir):
    run_dir.check("never")
    assert not run_dir.path.exists()
    with run_dir.claim("never"):
        assert run_dir.logs.is_dir()


def test_one_run_at_a_time(run_dir):
    with run_dir.claim("never"), pytest.raises(RunDirError, match="in use"):
        run_dir.check("auto")
    run_dir.check("never")


@pytest.mark.parametrize("status", ["failed", "interrupted", None])
def test_an_unfinished_run_wants_resume(run_dir, status):
    run_dir.claim("never").close()
    write_whole(run_dir.config, "epochs: 1\n")
    if status:
        write_json(run_dir.summary, {"status": status})
    with pytest.raises(RunDirError, match="resume=auto"):
        run_dir.check("never")
    run_dir.check("auto")


def test_a_claim_keeps_the_files_of_a_run_to_resume(run_dir):
    run_dir.claim("never").close()
    write_whole(run_dir.config, "epochs: 1\n")
    write_json(run_dir.summary, {"status": "failed"})
    write_json(run_dir.failure(0), {})
    with run_dir.claim("auto"):
        assert run_dir.status() == "failed"
        assert run_dir.failure(0).is_file()
        run_dir.forget_end()
        assert run_dir.status() == "unfinished"
        assert not run_dir.failure(0).exists()


def test_a_truncated_summary_is_no_status(run_dir):
    """An empty summary, and half a line of metrics."""
    run_dir.claim("never").close()
    write_whole(run_dir.config, "epochs: 1\n")
    run_dir.summary.write_text("")
    assert run_dir.status() == "unfinished"
    lines = [f'{{"kind": "train", "step": {step}, "stage": 0}}' for step in (1, 2)]
    lines.append('{"kind": "tr')
    run_dir.metrics.write_text("\n".join(lines))
    run_dir.forget_after(1, {})
    assert run_dir.metrics.read_text() == lines[0] + "\n"


def test_a_finished_run_does_not_need_its_initial_weights(run_dir):
    config = make_config()
    config.model.weights = "gone.safetensors"
    run_dir.claim("never").close()
    write_whole(run_dir.config, to_yaml(config))
    write_json(run_dir.summary, {"status": "finished"})
    assert run_dir.finished_config().model.weights is None


@pytest.mark.parametrize("text", [None, "{a: [1,\n  b", "epochs: 3\n", "7", "seed: ${a\n"])
def test_a_damaged_or_missing_configuration_is_named(run_dir, text):
    write_json(run_dir.summary, {"status": "finished"})
    if text is not None:
        run_dir.config.write_text(text)
    with pytest.raises(RunDirError, match=r"^run: .*config\.yaml cannot be read") as caught:
        run_dir.finished_config()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "7"])
def test_an_invalid_summary_is_no_status(run_dir, text):
    write_whole(run_dir.summary, text)
    assert run_dir.status() is None


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_finished_run_is_refused(run_dir, resume):
    run_dir.claim("never").close()
    write_json(run_dir.summary, {"status": "finished"})
    with pytest.raises(RunDirError, match="finished"):
        run_dir.claim(resume)


def test_other_files_are_not_changed(run_dir):
    run_dir.path.mkdir()
    (run_dir.path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        run_dir.claim("never")
    assert [item.name for item in run_dir.path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_directory(run_dir):
    run_dir.path.write_text("x")
    with pytest.raises(RunDirError, match="is a file"):
        run_dir.check("never")


def test_lines_that_a_resumed_run_writes_again_are_deleted(run_dir):
    run_dir.path.mkdir()
    lines = [
        {"kind": kind, "step": step, "stage": stage}
        for step in (5, 10, 15, 20)
        for kind in ("train", "test")
        for stage in (0, 1)
    ]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_dir.forget_after(10, {1: 15})
    kept = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    assert [(line["kind"], line["step"], line["stage"]) for line in kept] == [
        *(("train", 5, 0), ("train", 5, 1), ("test", 5, 0), ("test", 5, 1)),
        *(("train", 10, 0), ("train", 10, 1)),
        ("train", 15, 1),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        b"}",
        b"\xff\xfe",
        b"7",
        b"{}",
        b'{"kind": "tran", "step": 1, "stage": 0}',
        b'{"kind": "test", "step": "1", "stage": 0}',
        b'{"kind": "test", "step": 1, "stage": null}',
        bytes(40),
        b"",
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(run_dir, bad, warnings):
    run_dir.path.mkdir()
    good = b'{"kind": "train", "step": 1, "stage": 0}'
    run_dir.metrics.write_bytes(b"\n".join([good, bad, good.replace(b"1", b"2"), b'{"cut']))
    run_dir.forget_after(5, {})
    assert run_dir.metrics.read_bytes() == good + b"\n" + good.replace(b"1", b"2") + b"\n"
    text = f"{run_dir.metrics}: line 2 is not a line of metrics; it is deleted"
    assert warnings.messages == [text]


def test_missing_lines_are_told(run_dir, warnings):
    run_dir.path.mkdir()
    run_dir.metrics.write_text('{"kind": "train", "step": 1, "stage": 0}\n')
    run_dir.forget_after(5, {}, 1)
    assert warnings.messages == []
    run_dir.forget_after(5, {}, 3)
    run_dir.metrics.unlink()
    run_dir.forget_after(5, {}, 2)
    text = f"{run_dir.metrics}: got %d lines, %d when the checkpoint was written; the others are "
    assert warnings.messages == [text % (1, 3) + "lost", text % (0, 2) + "lost"]


def test_default_paths_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path()
    first.mkdir(parents=True)
    assert default_path() != first
