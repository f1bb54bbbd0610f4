"""`metrics.jsonl` of a killed and resumed run has each line of an undisturbed run, exactly once.

The checkpoints come between two lines, so a line after the resumption covers steps before it.
"""

from __future__ import annotations

import json
import os
import signal

import pytest

from dglpipe.runtime.plan import plan_layout
from dglpipe.runtime.recorder import Recorder
from dglpipe.runtime.run_dir import RunDir
from harness.configs import in_test_all, layout, make_config
from harness.training import complete_steps, make_trainer, run_planned, wait_for_checkpoints
from harness.worlds import CPU, WorldError

SETTINGS = ("model.dropout=0.2", "log_every=3", "checkpoint.every=2", "evaluate.every=1")
PROBED = ("probe.every=2", "probe.batch_size=120", "evaluate.batch_size=50")
SIMULATED = ("method=dgl_async", "method.simulate=true", "method.buffer=3", "log_every=5")


def record(trainer, run_dir):
    """The recorder of a run."""
    context, done_by_stage = trainer.context, trainer.runner.done_by_stage
    run = trainer.plan, RunDir(run_dir), context.group.store, CPU, trainer.checkpoints
    return Recorder(*run, context.done, done_by_stage, started=0.0)


def train(group, plan, run_dir, dies=None, left=()):
    """Trains with the sinks of a run. Rank `dies[0]` kills itself before it has logged its update
    number `dies[1]`, when the complete checkpoints are at the steps `left`."""
    trainer = make_trainer(group, plan, run_dir)
    recorder = record(trainer, run_dir) if group.topology.rank == 0 else None
    after, count = trainer._after, [0]

    def after_or_die(update):
        count[0] += 1
        if dies == (group.topology.rank, count[0]):
            trainer.checkpoints.drain()
            wait_for_checkpoints(run_dir, left)
            os.kill(os.getpid(), signal.SIGKILL)
        after(update)

    trainer._after = after_or_die
    trainer.run()
    trainer.finish()
    if recorder is not None:
        recorder.collector.finals(30)


def lines_of(run_dir):
    """The lines by kind, step and stage, without the speed."""
    found = {}
    for text in RunDir(run_dir).metrics.read_text().splitlines():
        line = json.loads(text)
        key = line["kind"], line["step"], line["stage"]
        assert key not in found, "twice"
        assert line.pop("samples_per_second", None) is not None or line["kind"] != "train"
        found[key] = line
    return found


@pytest.mark.parametrize(
    ("words", "world", "dies", "left"),
    [
        (PROBED, (3, 3), (1, 7), [4, 6]),
        in_test_all(SIMULATED, (3, 1), (0, 19), [2, 4]),
        in_test_all((), (2, 2, 2), (3, 8), [4, 6]),
        in_test_all((*PROBED, "method=sequential"), (2, 2), (0, 12), [8, 10]),
        in_test_all((*PROBED, "method=ddg"), (3, 2), (1, 7), [4, 6]),
        in_test_all(("method=backprop",), (2, 2), (0, 7), [4, 6]),
        in_test_all((), (3, 1), (0, 4), [2]),
        in_test_all(("optimizer=adam", "precision=bf16"), (2, 2), (1, 5), [2, 4]),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_each_line_once_with_the_values_of_an_undisturbed_run(words, world, dies, left, tmp_path):
    sizes = zip(("stages", "processes", "replicas"), world, strict=False)
    config = make_config(*SETTINGS, *words, *(f"pipeline.{name}={size}" for name, size in sizes))
    ranks = plan_layout(config.pipeline, config.method, cores=1)
    run_planned(ranks, train, config, tmp_path / "whole")
    whole = lines_of(tmp_path / "whole")
    assert whole
    killed = tmp_path / "killed"
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(ranks, train, config, killed, dies, left)
    cut = lines_of(killed)
    assert {key for key in whole if key[1] < left[-1]} <= cut.keys(), "lines before a checkpoint"
    with RunDir(killed).metrics.open("a") as file:
        file.write('{"kind": "tr')
    config.resume = "auto"
    run_planned(ranks, train, config, killed)
    assert complete_steps(killed) == complete_steps(tmp_path / "whole")
    assert lines_of(killed) == whole


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["overwrite", "block"])
def test_asynchronous_stages_log_each_line_once(policy, tmp_path):
    """The values differ from run to run, the lines do not. Stage 1 is ahead of the evaluations."""
    words = ("method=dgl_async", f"method.policy={policy}", "method.slowdown=[6.0,1.0]", "epochs=4")
    config = make_config(*SETTINGS, *words)
    run_planned(layout(2), train, config, tmp_path / "whole")
    whole = lines_of(tmp_path / "whole").keys()
    killed = tmp_path / "killed"
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(2), die_early, config, killed)
    (*_, newest) = complete_steps(killed)
    cut = lines_of(killed).keys()
    assert {key for key in whole if key[1] < newest} <= cut, "lines before a checkpoint"
    config.resume = "auto"
    run_planned(layout(2), train, config, killed)
    assert lines_of(killed).keys() == whole


def die_early(group, plan, run_dir):
    """Rank 0 kills itself when a checkpoint after the first evaluation is complete."""
    trainer = make_trainer(group, plan, run_dir)
    if group.topology.rank == 0:
        record(trainer, run_dir)
    after = trainer._after

    def after_or_die(update):
        if group.topology.rank == 0 and max(complete_steps(run_dir), default=0) > 4:
            os.kill(os.getpid(), signal.SIGKILL)
        after(update)

    trainer._after = after_or_die
    trainer.run()
    trainer.finish()
