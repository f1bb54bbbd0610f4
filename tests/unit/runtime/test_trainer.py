"""The trainer: logs, checkpoints and throughput after each event of a scripted runner."""

from __future__ import annotations

import pytest
import torch

from dglpipe.methods import RunContext, build_run_method
from dglpipe.methods.events import Evaluation, Update
from dglpipe.monitoring.timers import Timer
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.trainer import Trainer
from harness.configs import build_stages, layout, make_config

CPU = Device(torch.device("cpu"), "gloo")


class Script:
    """A runner that yields prepared events and notes the calls of the trainer."""

    decoders = None

    def __init__(self, stages, events, done_by_stage=None):
        self.stages = stages
        self.step = 0
        self.done_by_stage = done_by_stage or {}
        self.calls = []
        self._events = events

    def run(self):
        for event in self._events:
            if isinstance(event, Update):
                self.step = event.step
            yield event

    def check(self):
        self.calls.append("check")

    def close(self):
        self.calls.append("close")

    def state(self, stages):
        return {stage.index: f"state of {stage.index}" for stage in stages}

    def report(self, stage):
        return {"extra": stage.index}


class Saved:
    """In place of the checkpoints of a run."""

    def __init__(self):
        self.saved = []

    def save(self, step, stages, parts, report):
        self.saved.append((step, [stage.index for stage in stages], parts["more"]))
        report(step, [])

    def check(self):
        """No thread writes."""

    drain = check


@pytest.fixture
def build(monkeypatch):
    """Makes the trainer of two stages in one process, and what it sends to the store."""

    def make(events_of, *overrides, done=0, done_by_stage=None):
        config = make_config("pipeline.stages=2", "pipeline.threads=1", *overrides)
        source = open_images(config)
        plan = make_plan(config, layout(2, 1), source=source)
        network = build_stages(config, source.info, 2)
        length = RunLength(8, 4)
        stages = [
            Stage(j, network.learner(j), config.stage(j), Learning(), CPU, length, config.seed)
            for j in range(2)
        ]
        group = ProcessGroup.alone(plan.layout.at(0))
        method = build_run_method(config, 2, source.info)
        parts = (plan, method, source, CPU, group, Timer(), stages)
        context = RunContext(*parts, done=done, restored={})
        runner, saved = Script(stages, events_of(stages), done_by_stage), Saved()
        trainer = Trainer(context, runner, None, saved)
        sent = []
        monkeypatch.setattr(trainer._reporter._reporter, "send", sent.append)
        monkeypatch.setattr(trainer._reporter._reporter, "finish", sent.append)
        monkeypatch.setattr(trainer._reporter._reporter, "checkpoint", lambda *_: None)
        return trainer, runner, saved, sent

    return make


def update(step, stages, rows=10, ends=False, saved=None, lockstep=True):
    every = stages if saved is None else saved
    return Update(step, 1 + (step - 1) // 4, stages, step, rows, ends, every, lockstep)


def steps(count, last=()):
    return lambda stages: [
        *(update(step, stages, ends=step % 4 == 0) for step in range(1, count + 1)),
        *last,
    ]


def test_lines_come_every_so_many_steps_and_at_the_end_of_an_epoch(build):
    trainer, runner, _, sent = build(steps(8), "log_every=3")
    trainer.run()
    lines = [(sums.step, sums.stage) for sums in sent]
    assert lines == [(step, stage) for step in (3, 4, 6, 8) for stage in (0, 1)]
    assert runner.calls.count("check") == 4 + 1, "before every line, and at the end"
    assert runner.calls[-1] == "close"
    assert trainer.step == 8


def test_only_stages_that_made_the_step_are_logged(build):
    trainer, _, _, sent = build(
        lambda stages: [update(1, stages[:1], ends=True), update(1, stages[1:], ends=True)]
    )
    trainer.run()
    assert [sums.stage for sums in sent] == [0, 1]


def test_a_checkpoint_has_the_stages_of_its_step_and_the_state_of_the_runner(build):
    trainer, _, saved, _ = build(steps(8), "checkpoint.every=4")
    trainer.run()
    state = {0: "state of 0", 1: "state of 1"}
    assert saved.saved == [(4, [0, 1], state), (8, [0, 1], state)]


def test_stages_that_are_not_ready_are_not_saved(build):
    trainer, _, saved, _ = build(
        lambda stages: [update(4, stages[:1], saved=[]), update(4, stages[1:], saved=stages)],
        "checkpoint.every=4",
    )
    trainer.run()
    assert [(step, stages) for step, stages, _ in saved.saved] == [(4, [0, 1])]


def test_a_checkpoint_is_reported_after_the_evaluations_of_earlier_steps(build, monkeypatch):
    """A stage of asynchronous learning may be ahead of the evaluations: after steps 4 and 8."""
    events = [Evaluation(4, 1, None), Evaluation(8, 2, None)]
    trainer, _, _, sent = build(steps(8, events), "checkpoint.every=3", "log_every=100")
    reports = []
    monkeypatch.setattr(
        trainer._reporter._reporter,
        "checkpoint",
        lambda step, files: reports.append((step, [sums.step for sums in sent], files)),
    )
    trainer.run()
    trained, tested = [4, 4, 8, 8], [4, 4]
    assert reports == [(3, [], []), (6, trained + tested, [])]


def test_the_error_of_a_thread_ends_the_training(build):
    trainer, runner, _, _ = build(steps(8))

    def check():
        if runner.step == 3:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        trainer.run(check)
    assert trainer.step == 3


def test_without_checkpoints_no_state_is_saved(build):
    trainer, _, saved, _ = build(steps(8))
    trainer.run()
    assert saved.saved == []


def test_an_evaluation_is_reported_with_the_hits_of_the_ensemble(build):
    trainer, _, _, sent = build(lambda _: [Evaluation(4, 1, 7)])
    trainer.run()
    assert [(sums.kind, sums.stage) for sums in sent] == [
        ("test", 0),
        ("test", 1),
        ("test", "ensemble"),
    ]
    assert sent[-1].correct == 7


def test_the_final_report_has_the_entries_of_the_runner(build):
    trainer, _, _, sent = build(steps(8))
    trainer.run()
    trainer.finish()
    final = sent[-1]
    assert [entry["extra"] for entry in final["stages"]] == [0, 1]
    assert [entry["stage"] for entry in final["stages"]] == [0, 1]
    assert final["samples_per_second"] is None, "8 steps are too few"
    assert final["stages"][0]["head_parameters"] > 0
    assert final["stages"][1]["head_parameters"] == 0


def test_a_long_run_has_a_rate(build):
    trainer, _, _, sent = build(steps(16), "epochs=4")
    trainer.run()
    trainer.finish()
    assert sent[-1]["samples_per_second"] > 0


def test_an_error_of_a_check_ends_the_training(build):
    trainer, runner, *_ = build(lambda stages: [update(step, stages) for step in range(1, 5)])

    def check():
        if runner.step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer.run(check)
    assert runner.step == 2
