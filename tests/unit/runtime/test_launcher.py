"""The launcher after its workers have ended; no worker is started."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import replace

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dglpipe.errors import ConfigError, PeerLostError, RunFailedError, UserError
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import failure, launcher
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.run_dir import RunDir
from harness.configs import make_config

LAYOUT = Layout(3, 3, 1, 1)
SUMMARY = {"status": "finished"}


class Launch:
    """One call of the launcher with prepared workers.

    Args:
        ends: called instead of starting workers; returns their results or raises their error.
    """

    def __init__(self, monkeypatch, tmp_path):
        self.run_dir = RunDir(tmp_path / "run")
        self.run_dir.logs.mkdir(parents=True)
        self.asked = []
        self.ends = lambda: {0: SUMMARY}
        monkeypatch.setattr(launcher, "elastic_launch", self._elastic_launch)
        for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
            monkeypatch.setenv(name, "")  # so that it is put back
            monkeypatch.delenv(name)

    def _elastic_launch(self, config, entry):
        self.config, self.entry = config, entry

        def start(*arguments):
            self.asked = arguments
            return self.ends()

        return start

    def __call__(self, *overrides, layout=LAYOUT):
        self.plan = replace(make_plan(make_config(*overrides), Layout(2, 1, 1, 1)), layout=layout)
        return launcher.launch(self.plan, self.run_dir)

    def fail(self, *stories, **exitcodes):
        """Prepares the failure records and the exit codes of the workers, by rank."""
        for story in stories:
            failure.write(story, self.run_dir)

        def ends():
            codes = {int(rank.removeprefix("rank_")): code for rank, code in exitcodes.items()}
            failed = {
                rank: ProcessFailure(rank, 100 + rank, code, "<none>")
                for rank, code in codes.items()
            }
            raise ChildFailedError("dglpipe", failed)

        self.ends = ends

    def summary(self):
        return json.loads(self.run_dir.summary.read_text())


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

    def test_every_worker_gets_plan_directory_and_launcher(self, launch):
        launch("seed=5")
        plan, path, pid = pickle.loads(pickle.dumps(launch.asked))  # as spawned processes do
        assert plan == launch.plan
        assert (plan.config.seed, path, pid) == (5, str(launch.run_dir.path), os.getpid())

    def test_workers_are_spawned_once_each(self, launch):
        """Forked workers would outlive a killed launcher."""
        launch()
        config = launch.config
        assert (config.nproc_per_node, config.min_nodes, config.max_nodes) == (3, 1, 1)
        assert (config.start_method, config.max_restarts) == ("spawn", 0)
        assert "SIGINT" not in config.signals_to_handle


class TestEnvironment:
    def test_threads_are_set_from_the_layout(self, launch):
        launch(layout=Layout(3, 3, 1, 5))
        assert os.environ["OMP_NUM_THREADS"] == "5"

    @pytest.mark.parametrize(("platform", "interface"), [("linux", "lo"), ("darwin", "lo0")])
    def test_links_run_over_the_loopback(self, launch, monkeypatch, platform, interface):
        monkeypatch.setattr("sys.platform", platform)
        launch()
        assert os.environ["GLOO_SOCKET_IFNAME"] == interface

    def test_an_interface_of_the_user_stays(self, launch, monkeypatch):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
        launch()
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


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
        """At the end of a failed run the remaining workers are killed."""
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

    def test_workers_without_a_report_point_to_the_logs(self, launch):
        launch.fail(rank_1=3)
        with pytest.raises(RunFailedError) as caught:
            launch()
        assert str(launch.run_dir.logs) in str(caught.value)

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


class TestInterrupted:
    @pytest.mark.parametrize(
        ("error", "name"),
        [
            (KeyboardInterrupt(), "SIGINT"),
            (SignalException("by the cluster", signal.SIGTERM), "SIGTERM"),
            (SignalException("the terminal was closed", signal.SIGHUP), "SIGHUP"),
        ],
    )
    def test_the_signal_is_named(self, launch, error, name):
        def ends():
            raise error

        launch.ends = ends
        with pytest.raises(KeyboardInterrupt, match=name):
            launch()
        assert launch.summary()["status"] == "interrupted"

    def test_an_error_of_the_launcher_itself_is_a_failed_run(self, launch):
        launch.ends = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            launch()
        assert launch.summary()["status"] == "failed"
