"""The launcher after its workers have ended; no worker is started."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import asdict, replace

import pytest

from dglpipe.errors import ConfigError, PeerLostError, PreemptedError, RunFailedError, UserError
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure, launcher, preemption, signals
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.signals import Interruption
from dglpipe.runtime.supervisor import Worker
from harness.configs import make_config

LAYOUT = Layout(3, 3, 1, 1)
SUMMARY = {"status": "finished"}


class Workers:
    """Prepared workers in place of processes."""

    def __init__(self, outcomes, codes, signals=()):
        self.workers = [Worker(rank, None, None, None, 0) for rank in range(3)]
        for rank, outcome in outcomes.items():
            self.workers[rank].outcome = outcome
        for rank, code in codes.items():
            self.workers[rank].exit_code = code
        self.signals = signals
        self.has_ended = False

    def wait(self, inbox):
        yield from self.signals

    def end(self):
        self.has_ended = True


class Launch:
    """Calls of the launcher with prepared workers.

    Attributes:
        attempts: the workers of each attempt; the last is used again.
        asked: the arguments of each attempt.
    """

    def __init__(self, monkeypatch, tmp_path):
        self.run_dir = RunDir(tmp_path / "run")
        self.run_dir.logs.mkdir(parents=True)
        self.asked = []
        self.attempts = [done()]
        monkeypatch.setattr(launcher, "Supervisor", self._supervisor)
        for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            monkeypatch.setenv(name, "")  # so that it is put back
            monkeypatch.delenv(name)

    def _supervisor(self, count, entry, arguments):
        assert (count, entry) == (3, launcher._entry)
        self.asked.append(arguments)
        return self.attempts[min(len(self.asked), len(self.attempts)) - 1]

    def __call__(self, *overrides, layout=LAYOUT):
        self.plan = replace(make_plan(make_config(*overrides), Layout(2, 1, 1, 1)), layout=layout)
        return launcher.launch(self.plan, self.run_dir)

    def fail(self, *stories, **exitcodes):
        """Prepares the failure records and the exit codes of the workers, by rank."""
        self.attempts = [failed(*stories, **exitcodes)]

    def summary(self):
        return json.loads(self.run_dir.summary.read_text())


def done():
    return Workers({0: {"done": SUMMARY}, 1: {"done": None}, 2: {"done": None}}, {})


def failed(*stories, **exitcodes):
    codes = {int(rank.removeprefix("rank_")): code for rank, code in exitcodes.items()}
    workers = Workers({story.rank: {"failure": asdict(story)} for story in stories}, codes)
    for worker in workers.workers:
        worker.was_ended = worker.rank not in codes
    return workers


@pytest.fixture
def launch(monkeypatch, tmp_path):
    return Launch(monkeypatch, tmp_path)


def story(error, rank, step=4):
    try:
        raise error
    except Exception as caught:
        return failure.record(caught, rank, LAYOUT.at(rank).name(), step)


class TestFinished:
    def test_the_summary_comes_from_rank_0(self, launch):
        assert launch() == SUMMARY
        assert not launch.run_dir.summary.exists(), "rank 0 has written it"
        assert launch.attempts[0].has_ended

    def test_every_worker_gets_plan_directory_launcher_and_store(self, launch):
        launch("seed=5")
        (arguments,) = launch.asked
        plan, path, pid, port, _, start = pickle.loads(
            pickle.dumps(arguments)
        )  # as spawned processes do
        assert plan == launch.plan
        assert (plan.config.seed, path, pid) == (5, str(launch.run_dir.path), os.getpid())
        assert 1024 <= port < 65536
        assert start is None, "rank 0 selects the checkpoint"


class TestRestarts:
    def test_a_failed_attempt_is_followed_by_one_that_resumes(self, launch, capsys):
        launch.attempts = [failed(story(ValueError("a"), 1), rank_1=1), done()]
        assert launch("max_restarts=2") == SUMMARY
        first, second = launch.asked
        assert (first[0].config.resume, second[0].config.resume) == ("never", "auto")
        assert first[-2] != second[-2], "keys of the first attempt would confuse the second"
        assert "ValueError: a" in (text := capsys.readouterr().err)
        assert text.endswith("restart 1 of 2\n")

    def test_restarts_are_limited(self, launch):
        launch.fail(rank_1=-signal.SIGKILL)
        with pytest.raises(RunFailedError):
            launch("max_restarts=2")
        assert len(launch.asked) == 3

    def test_a_mistake_of_the_user_is_not_repeated(self, launch):
        launch.fail(story(ConfigError("epochs", -1, "more"), 1, step=0), rank_1=1)
        with pytest.raises(UserError):
            launch("max_restarts=2")
        assert len(launch.asked) == 1

    def test_a_failure_that_would_repeat_is_not_repeated(self, launch):
        launch.fail(story(ConfigError("epochs", -1, "more"), 1, step=3), rank_1=1)
        with pytest.raises(RunFailedError):
            launch("max_restarts=2")
        assert len(launch.asked) == 1

    def test_a_signal_is_not_answered_by_a_restart(self, launch):
        launch.attempts = [Workers({}, {}, [signal.SIGINT])]
        with pytest.raises(KeyboardInterrupt):
            launch("max_restarts=2")
        assert len(launch.asked) == 1


class TestEnvironment:
    def test_threads_are_set_from_the_layout(self, launch):
        launch(layout=Layout(3, 3, 1, 5))
        assert os.environ["OMP_NUM_THREADS"] == "5"

    @pytest.mark.parametrize("name", ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"])
    def test_links_run_over_the_loopback(self, launch, name):
        launch()
        assert os.environ[name] == launcher.LOOPBACK_INTERFACE

    def test_an_interface_of_other_machines_is_not_used(self, launch, monkeypatch):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
        launch()
        assert os.environ["GLOO_SOCKET_IFNAME"] == launcher.LOOPBACK_INTERFACE


class TestCause:
    def test_the_earliest_error_is_explained_and_not_the_first_exit(self, launch):
        lost = story(PeerLostError("lost rank 1"), 0)
        late, early = story(ValueError("late"), 2), story(ZeroDivisionError("early"), 1)
        early = replace(early, time_ns=late.time_ns - 1)
        launch.fail(lost, late, early, rank_0=1, rank_1=1, rank_2=1)
        with pytest.raises(RunFailedError) as caught:
            launch()
        text = str(caught.value)
        assert text.startswith("Traceback")
        assert "rank 1 (stage 1) failed at step 4: ZeroDivisionError: early" in text
        assert text.endswith(f"log: {launch.run_dir.log(1)}")

    def test_a_killed_worker_is_the_cause_if_other_records_are_secondary(self, launch):
        launch.fail(story(PeerLostError("lost rank 2"), 1, step=9), rank_2=-signal.SIGKILL)
        with pytest.raises(RunFailedError) as caught:
            launch()
        first, *_, last = str(caught.value).splitlines()
        assert first == (
            "rank 2 (stage 2) was ended by SIGKILL; rank 1 (stage 1) noticed at step 9"
        )
        assert last == f"log: {launch.run_dir.log(2)}"

    def test_an_error_counts_before_a_kill(self, launch):
        launch.fail(story(ValueError("a"), 0), rank_0=1, rank_1=-signal.SIGTERM)
        with pytest.raises(RunFailedError, match="failed at step 4: ValueError: a"):
            launch()

    def test_a_killed_worker_without_records_of_other_workers(self, launch):
        launch.fail(rank_0=-signal.SIGSEGV)
        with pytest.raises(RunFailedError, match=r"^rank 0 \(stage 0\) was ended by SIGSEGV\n"):
            launch()

    def test_a_lost_peer_is_reported_without_a_primary_record(self, launch):
        launch.fail(story(PeerLostError("lost rank 1"), 0), rank_0=1)
        with pytest.raises(RunFailedError, match=r"rank 0 .* PeerLostError: lost rank 1"):
            launch()

    @pytest.mark.parametrize("code", [0, 3])
    def test_an_early_exit_without_a_report_is_named(self, launch, code):
        launch.fail(story(PeerLostError("lost rank 1"), 0, step=8), rank_0=1, rank_1=code)
        with pytest.raises(RunFailedError) as caught:
            launch()
        first = str(caught.value).splitlines()[0]
        assert first == (
            f"rank 1 (stage 1) exited with status {code} before the end of the run; "
            "rank 0 (stage 0) noticed at step 8"
        )

    def test_a_user_error_before_the_first_step_has_only_its_message(self, launch):
        mistake = ConfigError("epochs", -1, "a whole number from 1")
        launch.fail(story(mistake, 1, step=0), rank_1=1)
        with pytest.raises(UserError) as caught:
            launch()
        assert str(caught.value) == str(mistake)

    def test_a_mistake_of_the_user_in_a_later_step_is_a_failed_run(self, launch):
        launch.fail(story(ConfigError("epochs", -1, "more"), 1, step=3), rank_1=1)
        with pytest.raises(RunFailedError, match="failed at step 3"):
            launch()

    @pytest.mark.parametrize(
        ("checkpoints", "advice"), [(0, "give another run_dir"), (5, "last complete checkpoint")]
    )
    def test_advice_depends_on_checkpoints(self, launch, checkpoints, advice):
        launch.fail(rank_0=-signal.SIGKILL)
        with pytest.raises(RunFailedError, match=advice):
            launch(f"checkpoint.every={checkpoints}")

    def test_the_summary_says_that_the_run_failed(self, launch):
        launch.fail(rank_0=1)
        with pytest.raises(RunFailedError):
            launch()
        assert launch.summary()["status"] == "failed"
        assert launch.run_dir.status() == "failed"


class TestSignals:
    @pytest.mark.parametrize(
        "signals",
        [[signal.SIGINT], [signal.SIGQUIT], [signal.SIGTERM, signal.SIGTERM]],
    )
    def test_the_signal_that_ends_a_run_is_named(self, launch, signals):
        launch.attempts = [Workers({}, {}, signals)]
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(signals[-1]).name):
            launch()
        assert launch.attempts[0].has_ended
        assert launch.summary()["status"] == "interrupted"

    def test_a_signal_before_the_start_that_a_library_has_swallowed(self, launch, monkeypatch):
        interruption = Interruption()
        monkeypatch.setattr(launcher, "INTERRUPTION", interruption)
        with pytest.raises(KeyboardInterrupt):
            interruption()
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            launch()
        assert launch.asked == [], "no process was started"
        assert launch.summary()["status"] == "interrupted"

    def test_several_signals_at_once_interrupt_once(self, monkeypatch):
        interruption, now = Interruption(), [5.0]
        monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
        with pytest.raises(KeyboardInterrupt):
            interruption()
        interruption()
        now[0] += signals.SAME_CTRL_C_S + 0.1
        with pytest.raises(KeyboardInterrupt):
            interruption()

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_preempted_run_ends_after_a_checkpoint(self, launch, number, monkeypatch):
        requests = []
        monkeypatch.setattr(preemption, "request", requests.append)
        launch.attempts = [Workers({rank: {"preempted": 7} for rank in range(3)}, {}, [number])]
        with pytest.raises(PreemptedError, match="after step 7"):
            launch()
        assert len(requests) == 1
        assert not launch.run_dir.summary.exists(), "rank 0 has written it"

    def test_a_run_outlives_its_terminal(self, launch):
        launch.attempts[0].signals = [signal.SIGHUP]
        assert launch() == SUMMARY

    def test_an_error_of_the_launcher_itself_is_a_failed_run(self, launch, monkeypatch):
        monkeypatch.setattr(launch.attempts[0], "wait", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            launch()
        assert launch.summary()["status"] == "failed"
