import errno
import itertools
from types import SimpleNamespace

import pytest

from dglpipe.errors import (
    ConfigError,
    DamagedError,
    LoadingError,
    PeerLostError,
    RunFailedError,
    StorageError,
)
from dglpipe.runtime import failure
from dglpipe.runtime.run_dir import RunDir


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Every record is a nanosecond later than the one before."""
    monkeypatch.setattr(failure, "_unwritten", {})
    monkeypatch.setattr(failure, "time", SimpleNamespace(time_ns=itertools.count(1).__next__))


def raised(error):
    try:
        raise error
    except Exception as caught:
        return caught


def test_the_cause_comes_before_its_consequences(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.logs.mkdir()
    lost = failure.record(raised(PeerLostError("lost rank 1")), 0, "rank 0 (stage 0)", 4)
    cause = failure.record(raised(ZeroDivisionError("by zero")), 1, "rank 1 (stage 1)", 3)
    for story in (lost, cause):
        failure.write(story, run_dir)
    first, second = failure.read(run_dir)
    assert first == cause
    assert second == lost
    assert failure.read_own(run_dir, 1) == cause


def test_the_earlier_of_two_causes_is_reported():
    early = failure.record(raised(ValueError("a")), 1, "rank 1", 3)
    late = failure.record(raised(ValueError("b")), 0, "rank 0", 3)
    assert failure.in_order([late, early]) == [early, late]


def test_the_report_has_traceback_process_step_and_log(tmp_path):
    story = failure.record(raised(ZeroDivisionError("by zero")), 1, "rank 1 (stage 1)", 3)
    text = story.describe(tmp_path / "rank_1.log", True)
    assert text.startswith("Traceback")
    assert "in raised" in text
    assert "rank 1 (stage 1) failed at step 3: ZeroDivisionError: by zero" in text
    assert text.endswith("rank_1.log")


def test_a_user_error_is_reported_without_a_traceback(tmp_path):
    error = ConfigError("epochs", -1, "a whole number from 1")
    story = failure.record(raised(error), 0, "rank 0 (stage 0)", 0)
    assert story.user
    assert "Traceback" not in story.describe(tmp_path / "rank_0.log", False)
    assert "epochs: got -1" in story.describe(tmp_path / "rank_0.log", False)


def test_the_message_of_a_loading_error_is_the_whole_report(tmp_path):
    story = failure.record(raised(LoadingError("data.workers=1: gone")), 0, "rank 0 (stage 0)", 2)
    assert not story.user, "the run has failed: status 1"
    report = story.describe(tmp_path / "rank_0.log", False)
    assert report.startswith(
        "rank 0 (stage 0) failed at step 2: LoadingError: data.workers=1: gone"
    )


def test_a_loading_error_with_a_cause_has_a_traceback(tmp_path):
    error = LoadingError("data.workers=1: failed")
    error.__cause__ = KeyError("in a loading process")
    report = failure.record(raised(error), 0, "rank 0 (stage 0)", 2).describe(tmp_path, False)
    assert report.startswith("KeyError: 'in a loading process'")


def test_a_full_disk_is_reported_by_path_process_and_remedy(tmp_path):
    error = StorageError("run/metrics.jsonl", OSError(errno.ENOSPC, "full"))
    story = failure.record(raised(error), 0, "rank 0 (stage 0)", 7)
    first, second, remedy, *_ = story.describe(tmp_path / "rank_0.log", True).splitlines()
    assert first == "No space left on device: run/metrics.jsonl"
    assert second == f"rank 0 (stage 0) failed at step 7: {first}"
    assert remedy.startswith("free space on this disk")
    assert "Traceback" not in story.describe(tmp_path / "rank_0.log", True)


def test_a_record_that_cannot_be_written_is_no_error(tmp_path):
    story = failure.record(raised(ValueError("a")), 0, "rank 0 (stage 0)", 7)
    run_dir = RunDir(tmp_path / "run")
    assert not failure.write(story, run_dir), "the run directory was removed"
    assert not run_dir.path.exists()
    run_dir.logs.mkdir(parents=True)
    run_dir.failure(0).mkdir()
    assert not failure.write(story, run_dir)
    assert failure.read_own(run_dir, 0) == story
    run_dir.failure(0).rmdir()
    assert failure.write(story, run_dir)


def test_damaged_checkpoints_are_listed_with_what_to_do_and_status_1(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.logs.mkdir()
    error = DamagedError("run_dir: no checkpoint in run/checkpoints is intact:\n  a\nTo train")
    story = failure.record(raised(error), 0, "rank 0 (stage 0)", 0)
    plan = SimpleNamespace(config=SimpleNamespace(checkpoint=SimpleNamespace(every=5)))
    found = failure.explain({0: "exited"}, [story], plan, run_dir)
    assert isinstance(found, RunFailedError)
    assert str(found) == f"{error}\nlog: {run_dir.log(0)}"
