"""`make gpu-check`, without a GPU."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from harness.paths import GPU_CHECK, ROOT

sys.path.append(str(GPU_CHECK))

import gpu_check
from gpu_checks import Checks, host_growth, judge_kill, plan_for
from gpu_runs import Run, Runner, alive, kill_one, resident, strict, watch_memory


def summary(hashes=("a", "b"), rate=100.0, peak=1000, device="cuda"):
    stages = [{"weights_sha256": one, "peak_memory_bytes": peak} for one in hashes]
    throughput = {"samples_per_second": rate}
    return {"per_stage": stages, "throughput": throughput, "device": device}


class FakeRunner:
    """Returns prepared runs by name: with a summary, or failed without one."""

    def __init__(self, folder, **prepared):
        self.asked = {}
        self._folder = folder
        self._prepared = prepared

    def run(self, name, *overrides, start=None, during=None):
        self.asked[name] = overrides, start
        path = self._folder / name
        path.mkdir()
        prepared = self._prepared.get(name, {"summary": summary()})
        if "summary" in prepared:
            (path / "summary.json").write_text(json.dumps(prepared["summary"]))
        status = prepared.get("status", 0)
        return Run(status, prepared.get("stderr", ""), path, prepared.get("watched", []))


@pytest.fixture
def checks(tmp_path):
    """Builds the checks of a machine with `devices` GPUs over prepared runs."""

    def build(devices=2, **prepared):
        return Checks(FakeRunner(tmp_path, **prepared), plan_for(devices))

    return build


class TestWithoutCuda:
    def test_status_2_and_nothing_written(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert gpu_check.main(["--output", str(tmp_path / "report.json")]) == 2
        text = capsys.readouterr().err
        assert "no CUDA device" in text
        assert "--rehearse" in text
        assert list(tmp_path.iterdir()) == []

    def test_documents_say_whether_it_has_been_run(self):
        for readme in (ROOT / "docs" / "architecture.md", GPU_CHECK / "README.md"):
            text = readme.read_text()
            says_not = re.search(r"CUDA\W+path\W+has\W+not\W+been\W+run", text) is not None
            assert says_not != gpu_check.REPORT.exists(), readme


class TestPlan:
    @pytest.mark.parametrize(
        ("devices", "stages", "processes"), [(0, 2, 2), (1, 2, 1), (2, 2, 2), (4, 4, 4), (8, 4, 4)]
    )
    def test_stages_and_processes(self, devices, stages, processes):
        plan = plan_for(devices)
        assert (plan.stages, plan.processes) == (stages, processes)
        backend = "nccl" if devices else "gloo"
        assert f"pipeline.backend={backend}" in plan.settings

    def test_soak_is_1000_batches(self):
        assert plan_for(2).steps == 1000

    def test_last_batch_of_an_epoch_is_uneven(self):
        for devices in (0, 2):
            values = dict(setting.split("=") for setting in plan_for(devices).settings)
            rest = int(values["data.samples"]) % int(values["batch_size"])
            assert 2 <= rest < int(values["batch_size"])
            # The parity runs must come to it.
            assert int(values["data.samples"]) // int(values["batch_size"]) < 40


class TestParity:
    def test_equal(self, checks):
        result = checks().parity()
        assert result == {"passed": True, "fp32": True, "bf16": True}

    def test_runs_differ_in_processes_only(self, checks):
        built = checks(4)
        built.parity()
        asked = {name: overrides for name, (overrides, _) in built._runner.asked.items()}
        one, many = asked["parity_bf16_1"], asked["parity_bf16_4"]
        assert set(one) ^ set(many) == {"pipeline.processes=1", "pipeline.processes=4"}
        assert "deterministic=true" in one

    def test_other_weights(self, checks):
        other = {"summary": summary(hashes=("a", "c"))}
        result = checks(parity_bf16_2=other).parity()
        assert result == {"passed": False, "fp32": True, "bf16": False}

    def test_a_failed_run_shows_its_output(self, checks):
        result = checks(parity_fp32_1={"status": 1, "stderr": "it broke"}).parity()
        assert not result["passed"]
        assert result["fp32"] == "it broke"

    def test_one_gpu_is_not_enough(self, checks):
        assert checks(1).parity() == {"passed": None, "reason": "needs two GPUs"}


class TestNoWaiting:
    def test_starts_strict_workers(self, checks):
        built = checks(2)
        assert built.no_waiting()["passed"]
        _, start = built._runner.asked["no_waiting"]
        assert start == strict(2)
        assert start[-1] == "--worker"
        assert "--nproc-per-node=2" in start

    def test_a_failure_shows_its_output(self, checks):
        failed = {"status": 1, "stderr": "called a synchronizing CUDA operation"}
        result = checks(no_waiting=failed).no_waiting()
        assert result["passed"] is False
        assert "synchronizing" in result["output"]


class TestSoak:
    FLAT = (100,) * 40
    RISING = tuple(range(100, 140))

    def test_flat(self, checks):
        result = checks(soak={"summary": summary(), "watched": self.FLAT}).soak()
        assert result == {
            "passed": True,
            "steps": 1000,
            "peak_bytes": [1000, 1000],
            "host_growth": 0.0,
        }

    @pytest.mark.parametrize(
        "soak",
        [
            {"summary": summary(), "watched": RISING},
            {"summary": summary(peak=1100), "watched": FLAT},
            {"summary": summary(), "watched": FLAT[:7]},
            {"status": 1},
        ],
        ids=["host", "device", "too few samples", "failed"],
    )
    def test_not_flat(self, checks, soak):
        assert not checks(soak=soak).soak()["passed"]

    def test_throughput_takes_its_figure_from_it(self, checks):
        soak = {"summary": summary(rate=180.0), "watched": self.FLAT}
        built = checks(soak=soak)
        built.soak()
        assert built.throughput() == {
            "passed": True,
            "samples_per_second": {"1": 100.0, "2": 180.0},
        }

    def test_no_throughput_without_it(self, checks):
        assert not checks().throughput()["passed"]


def test_host_growth():
    assert host_growth([9, 9, 10, 10, 50, 50, 11, 11]) == pytest.approx(0.1)
    assert host_growth([1] * 7) is None


class TestKill:
    CAUSE = "rank 1 (stage 1) was ended by SIGKILL; rank 0 (stage 0) noticed at step 9"

    @staticmethod
    def judge(stderr, milliseconds=(1500,), status=1):
        return judge_kill(Run(status, stderr, Path("nowhere"), list(milliseconds)), 1)

    def test_cause_first_and_in_time(self):
        result = self.judge(f"training\n{self.CAUSE}\nlog: x\nlost rank 1: Connection closed")
        assert result == {"passed": True, "seconds": 1.5, "cause_first": True, "status": 1}

    @pytest.mark.parametrize(
        ("stderr", "how"),
        [
            (f"Traceback ...\n{CAUSE}", {}),
            (CAUSE.replace("rank 1 ", "rank 0 "), {}),
            ("nothing", {}),
            (CAUSE, {"milliseconds": (10_500,)}),
            (CAUSE, {"milliseconds": ()}),
            (CAUSE, {"status": 0}),
        ],
        ids=["later", "other rank", "unreported", "slow", "never trained", "status"],
    )
    def test_not_so(self, stderr, how):
        result = self.judge(stderr, **how)
        assert result["passed"] is False
        assert result["output"] == stderr

    def test_one_gpu_is_not_enough(self, checks):
        assert checks(1).kill()["passed"] is None


class TestReport:
    def test_a_check_that_raises_does_not_stop_the_others(self, tmp_path, monkeypatch):
        monkeypatch.setattr(gpu_check, "Runner", lambda folder, _: FakeRunner(folder, soak={}))
        lines = []
        plan = plan_for(2)
        results = gpu_check.run_checks(tmp_path, plan, lines.append)
        assert list(results) == ["parity", "no_waiting", "soak", "kill", "throughput"]
        assert len(lines) == 5
        assert results["parity"]["passed"]
        assert results["soak"]["passed"] is False
        assert "KeyError" in results["soak"]["output"]
        report = json.loads(json.dumps(gpu_check.make_report(results, plan, rehearsal=False)))
        assert report["passed"] is False
        assert {"torch", "cuda", "nccl", "devices"} <= report["machine"].keys()

    @pytest.mark.parametrize(
        ("outcomes", "passed", "complete"),
        [((True, True), True, True), ((True, None), True, False), ((False, None), False, False)],
    )
    def test_passed_and_complete(self, outcomes, passed, complete):
        results = {str(number): {"passed": one} for number, one in enumerate(outcomes)}
        report = gpu_check.make_report(results, plan_for(1), rehearsal=True)
        assert (report["passed"], report["complete"]) == (passed, complete)
        assert report["rehearsal"]


class TestStrictWorker:
    @pytest.fixture
    def modes(self, monkeypatch):
        modes = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
        return modes

    def test_step_and_receive_are_strict_and_nothing_else_is(self, modes, monkeypatch):
        from dglpipe.methods.dgl import DglRunner
        from dglpipe.pipeline.inputs import LinkInputs

        monkeypatch.setattr(DglRunner, "train", lambda *_: modes.append("step"))
        monkeypatch.setattr(LinkInputs, "take", lambda *_: modes.append("take"))

        def work(arguments):
            assert arguments == ["train", "seed=1"]
            LinkInputs.take(None)
            DglRunner.train(None, None)

        monkeypatch.setattr("dglpipe.cli.main.main", work)
        gpu_check.strict_worker(["seed=1"])
        assert modes == ["error", "take", "default", "error", "step", "default"]

    def test_mode_is_reset_after_an_error(self, modes):
        with pytest.raises(ZeroDivisionError):
            gpu_check._strict(lambda: 1 / 0)()
        assert modes == ["error", "default"]


# ---------------------------------------------------------------- runs from outside

LAUNCHER = textwrap.dedent("""
    import json, pathlib, subprocess, sys, time
    path = pathlib.Path(sys.argv[-1].removeprefix("run_dir="))
    path.mkdir()
    workers = [subprocess.Popen(["sleep", sys.argv[1]]) for _ in range(2)]
    pids = [{"pid": worker.pid} for worker in workers]
    (path / "workers.json").write_text(json.dumps(pids))
    (path / "metrics.jsonl").write_text("{}")
    while all(worker.poll() is None for worker in workers):
        time.sleep(0.01)
    for worker in workers:
        worker.terminate()
        worker.wait()
    sys.exit("rank 1 was ended by SIGKILL" if workers[1].returncode == -9 else 0)
""")
"""A launcher of two workers that sleep; it ends them all when one of them ends."""


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path, ["a=1"])


class TestRunner:
    def test_status_and_last_lines(self, runner):
        say = "import sys; sys.exit(' '.join(sys.argv[1:-1]))"
        run = runner.run("one", "b=2", start=("-c", say))
        assert not run.ended_well()
        assert run.last_lines() == "a=1 b=2"
        assert run.summary == {}

    def test_nothing_is_left_when_the_watcher_fails(self, runner):
        started = []

        def watcher(process, path):
            started.append(process.pid)
            raise RuntimeError("watcher")

        with pytest.raises(RuntimeError, match="watcher"):
            runner.run("one", start=("-c", "import time; time.sleep(60)"), during=watcher)
        assert not alive(started[0])

    def test_kill_one_kills_the_last_rank_and_waits_for_all(self, tmp_path):
        run = Runner(tmp_path, ["60"]).run("one", start=("-c", LAUNCHER), during=kill_one)
        assert run.status == 1
        assert "rank 1 was ended by SIGKILL" in run.stderr
        assert 0 <= run.watched[0] < 10_000

    def test_kill_one_gives_up_on_a_run_that_ends_before(self, runner):
        run = runner.run("one", start=("-c", "import sys; sys.exit(4)"), during=kill_one)
        assert run.status == 4
        assert run.watched == []

    def test_memory_is_sampled_while_the_workers_run(self, tmp_path):
        run = Runner(tmp_path, ["0.6"]).run(
            "one", start=("-c", LAUNCHER), during=lambda *who: watch_memory(*who, every=0.02)
        )
        assert run.ended_well()
        assert len(run.watched) > 2
        assert min(run.watched) > 2**16

    def test_a_process_that_is_gone_has_no_memory(self):
        assert resident(2**22 + 1) == 0
        assert not alive(2**22 + 1)
