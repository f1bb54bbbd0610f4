"""Run directories: checks, lock, status and paths."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
from pathlib import Path

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
    write_whole(run_dir.config, to_yaml(make_config()))
    if status:
        write_json(run_dir.summary, {"status": status})
    with pytest.raises(RunDirError, match="resume=auto"):
        run_dir.check("never")
    run_dir.check("auto")


def test_a_claim_keeps_the_files_of_a_run_to_resume(run_dir):
    run_dir.claim("never").close()
    write_whole(run_dir.config, to_yaml(make_config()))
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
    write_whole(run_dir.config, to_yaml(make_config()))
    run_dir.summary.write_text("")
    assert run_dir.status() == "unfinished"
    lines = [f'{{"kind": "train", "step": {step}, "stage": 0}}' for step in (1, 2)]
    lines.append('{"kind": "probe", "step": 1, "stage": 0}')
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


def test_a_finished_run_may_not_be_claimed(run_dir):
    run_dir.claim("never").close()
    write_json(run_dir.summary, {"status": "finished"})
    run_dir.check("auto")
    for resume in ("never", "auto"):
        with pytest.raises(RunDirError, match="finished"):
            run_dir.claim(resume)


# ---------------------------------------------------------------- leftovers of killed starts

LEFTOVERS = {
    "trust row 8": ["logs/", ".lock", ".config.yaml.1"],
    "before the lock": ["logs/"],
    "part files": [".config.yaml.7", ".summary.json.7", ".workers.json.7", "logs/"],
    "part files of processes": [".lock", "logs/.failure_0.json.7", "logs/.timeline_1.json.7"],
    "empty configuration": ["config.yaml"],
    "zeros": ["config.yaml=\0\0\0\0", ".lock", "logs/"],
    "half a configuration": ["config.yaml=HALF", ".lock", "logs/"],
}


def leave(folder, names):
    """Creates the files and folders `names`; `name=text` gives the content."""
    for name in names:
        path, _, text = name.partition("=")
        text = to_yaml(make_config())[:300] if text == "HALF" else text
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_text(text)


@pytest.mark.parametrize("resume", ["never", "auto"])
@pytest.mark.parametrize("names", LEFTOVERS.values(), ids=LEFTOVERS)
def test_a_directory_with_leftovers_counts_as_empty(run_dir, names, resume):
    leave(run_dir.path, names)
    assert run_dir.status() is None
    with run_dir.claim(resume):
        found = {str(path.relative_to(run_dir.path)) for path in run_dir.path.rglob("*")}
    assert found - {"logs/rank_0.log"} == {".lock", "logs"}


def test_part_files_of_a_run_to_resume_are_deleted(run_dir):
    kept = ["config.yaml", "workers.json", "checkpoints/step_00000003/stage_0.pt", "logs/"]
    parts = [
        ".metrics.jsonl.7",
        "checkpoints/step_00000003/.stage_1.pt.7",
        "final/.stage_0.safetensors.7",
        "final/.manifest.json.7",
    ]
    leave(run_dir.path, [*kept, *parts])
    with run_dir.claim("auto"):
        pass
    assert not [part for part in parts if (run_dir.path / part).exists()]
    assert all((run_dir.path / one).exists() for one in kept)


def test_leftovers_of_a_live_run_are_kept(run_dir):
    with run_dir.claim("never"):
        leave(run_dir.path, [".config.yaml.7"])
        with pytest.raises(RunDirError, match="in use"):
            run_dir.claim("auto")
        assert (run_dir.path / ".config.yaml.7").exists()


@pytest.mark.parametrize("killed_after", range(4))
def test_a_directory_whose_removal_was_killed_is_usable(run_dir, killed_after, monkeypatch):
    leave(run_dir.path, [".lock", "config.yaml=HALF", "metrics.jsonl", "workers.json", "final/"])
    count, unlink_now = itertools.count(), Path.unlink

    def unlink(path, **options):
        if next(count) == killed_after:
            raise KeyboardInterrupt
        unlink_now(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    with contextlib.suppress(KeyboardInterrupt):
        run_dir.discard()
    monkeypatch.undo()
    run_dir.claim("auto").close()


@pytest.mark.parametrize(
    ("names", "named"),
    [
        ([".lock", "logs/", "thesis.tex"], r"thesis\.tex"),
        (["logs/", "logs/notes.txt"], r"logs/notes\.txt"),
        ([".config.yaml.backup"], r"\.config\.yaml\.backup"),
        ([".thesis.tex.1"], r"\.thesis\.tex\.1"),
        (["config.yaml", "thesis.tex"], r"config\.yaml|thesis\.tex"),
        (["final/stage_0.safetensors", ".lock"], "final"),
    ],
    ids=str,
)
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_other_files_are_not_changed(run_dir, names, named, resume):
    leave(run_dir.path, names)
    before = {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")}
    with pytest.raises(RunDirError, match=named):
        run_dir.claim(resume)
    assert {path: path.stat().st_mtime_ns for path in run_dir.path.rglob("*")} == before


def test_an_unreadable_configuration_without_a_lock_is_not_ours(run_dir):
    leave(run_dir.path, ["config.yaml=a: [1", "logs/"])
    assert run_dir.status() == "unfinished"
    with pytest.raises(RunDirError, match="resume=auto"):
        run_dir.claim("never")
    run_dir.claim("auto").close()
    assert run_dir.config.read_text() == "a: [1"


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
    assert run_dir.forget_after(5, {}, 1) == 1
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
