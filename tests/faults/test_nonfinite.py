"""A loss or weight that is NaN or infinite stops the run: stage, step, rate, last finite loss."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from dataclasses import asdict

import pytest
import torch

from dglpipe.errors import NonFiniteError, NonFinitePeerError
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.weights import named_tensors, sha256
from dglpipe.runtime import failure
from dglpipe.runtime.finite_check import LOSS, STATE, Finding, FiniteCheck
from dglpipe.runtime.plan import make_plan, plan_layout
from dglpipe.runtime.run_dir import RunDir
from dglpipe.runtime.worker import run_worker
from harness.configs import in_test_all, layout, make_config, small
from harness.runners import TINY, ScriptedInputs, arrivals, open_runner
from harness.training import make_trainer
from harness.worlds import WorldError, run_world

torch.set_num_threads(1)
STEP = 5
"""The step of the first bad loss: the first of the second epoch of `SMALL`."""


def nan_loss(**args):
    given = ",".join(f"{name}:{value}" for name, value in args.items())
    return f"method.loss={{target:harness.plug_ins.NanLoss,args:{{{given}}}}}"


# ---------------------------------------------------------------- several processes


def run_rank(topology, store, plan, run_dir):
    os.environ["RANK"] = str(topology.rank)
    failure.PEER_PAUSE_S = 0.1  # no test reads who exits first
    run_worker(plan, RunDir(run_dir), store)


def failures(run_dir, *overrides):
    """The records of a run that fails, the first cause first."""
    config = make_config("epochs=3", "log_every=50", *overrides)
    world = plan_layout(config.pipeline, config.method, cores=1)
    RunDir(run_dir).claim("never").close()
    with pytest.raises(WorldError):
        run_world(world, run_rank, make_plan(config, world), run_dir, connected=False)
    return failure.read(RunDir(run_dir))


RUNS = {
    "dgl": ("pipeline.stages=3", nan_loss(step=STEP, rank=1)),
    "all stages": ("pipeline.stages=3", nan_loss(step=STEP)),
    "replicas": ("pipeline.stages=1", "pipeline.replicas=2", nan_loss(step=STEP, rank=1)),
    "sequential": ("pipeline.stages=2", "method=sequential", nan_loss(step=STEP, rank=1)),
    "1f1b": ("pipeline.stages=2", "method=backprop", "method.microbatches=2", nan_loss(step=8)),
    "async": ("pipeline.stages=2", "method=dgl_async", nan_loss(step=STEP, rank=0)),
}
"""The last batch of an epoch is divided into fewer micro-batches: step 5 has micro-batches 8, 9."""
CAUSES = {"dgl": 1, "all stages": 0, "replicas": 0, "sequential": 1, "1f1b": 1, "async": 0}
"""The stage of the first bad loss."""
SLOW = ("all stages", "replicas", "sequential", "1f1b", "async")


@pytest.mark.parametrize("name", ["dgl", *(in_test_all(one) for one in SLOW)])
def test_the_first_bad_loss_is_named(name, run_dir):
    """At the end of the epoch, and no checkpoint has what comes after the bad step."""
    first, *others = failures(run_dir, "checkpoint.every=2", *RUNS[name])
    stage = CAUSES[name]
    step = 4 * 3 + STEP if name == "sequential" else STEP  # the second round
    assert first.primary
    assert first.message.startswith(f"on_nonfinite: stage {stage}, step {step}: the loss is nan (")
    assert "learning rate 0.0" in first.message
    assert f"at step {step - 1})" in first.message
    assert "optimizer.clip" in first.message
    assert first.user, "no traceback"
    assert first.step >= step
    assert not any(other.primary for other in others)
    for file in RunDir(run_dir).checkpoints.glob(f"step_*/stage_{stage}*.pt"):
        assert int(file.parent.name[5:]) < step


@pytest.mark.slow
def test_the_command_ends_with_the_cause(start, run_dir):
    words = small("optimizer.lr=1e6", "schedule=constant", f"run_dir={run_dir}")
    run = start("train", *words)
    assert run.wait() == 1
    assert "on_nonfinite: stage 0, step " in run.stderr
    assert "(learning rate 1e+06, last finite loss: " in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("log: ")
    assert json.loads(RunDir(run_dir).summary.read_text())["status"] == "failed"
    assert not RunDir(run_dir).manifest.exists()


@pytest.mark.parametrize(
    ("step", "status", "text"),
    [
        in_test_all(1, 2, "dglpipe: method.loss: got 'an object of type float'; allowed: "),
        in_test_all(5, 1, "failed at step 5: method.loss: got 'an object of type float in stage "),
    ],
)
def test_a_wrong_loss_ends_the_command(start, run_dir, step, status, text):
    args = f"{{how:float,step:{step}}}"
    loss = f"method.loss={{target:harness.plug_ins.WrongLoss,args:{args}}}"
    run = start("train", *small(loss, f"run_dir={run_dir}"))
    assert run.wait() == status
    assert text in run.stderr
    assert "Traceback" not in run.stderr
    assert run_dir.exists() == (status == 1)


# ---------------------------------------------------------------- one process


def train(*overrides, run_dir=None, poison=None):
    """Trains two stages for 12 steps in this process; `poison` changes the trainer before."""
    words = ("epochs=4", "log_every=50", "evaluate.every=0", "pipeline.processes=1")
    config = make_config(*TINY, *words, "pipeline.stages=2", *overrides)
    group = ProcessGroup.alone(layout(2, 1).at(0))
    trainer = make_trainer(group, make_plan(config, layout(2, 1)), run_dir)
    if poison is not None:
        poison(trainer)
    trainer.run()
    return trainer


def after_step(stage, step, change):
    """Calls `change(stage)` after a step of the stage."""

    def poison(trainer):
        own = trainer.runner.stages[stage]
        update = own.update

        def updated(now, norm=None):
            update(now, norm)
            if now == step:
                change(own)

        own.update = updated

    return poison


def bad_weights(stage):
    with torch.no_grad():
        next(stage.module.parameters()).fill_(math.nan)


def bad_momentum(stage):
    next(iter(stage.optimizer.state.values()))["momentum_buffer"].fill_(math.inf)


def test_a_bad_weight_is_found_by_the_loss_of_the_next_step():
    with pytest.raises(NonFiniteError, match=r"stage 0, step 6: the loss is nan .* at step 5\)"):
        train(poison=after_step(0, 5, bad_weights))


@pytest.mark.parametrize(
    ("change", "name"), [(bad_weights, r"\S+"), (bad_momentum, r"momentum_buffer of \S+")]
)
def test_bad_state_is_found_before_it_is_saved(run_dir, change, name):
    expected = rf"stage 1, step 4: {name} is NaN or infinite \(learning rate .* at step 4\)"
    checkpoints = RunDir(run_dir).checkpoints

    def change_later(stage):
        """Checkpoints are written beside the training, the first by now."""
        deadline = time.monotonic() + 30
        while not (checkpoints / "step_00000002").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        change(stage)

    with pytest.raises(NonFiniteError, match=expected):
        train("checkpoint.every=2", run_dir=run_dir, poison=after_step(1, 4, change_later))
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000002"]


def test_bad_state_is_found_at_the_end():
    with pytest.raises(NonFiniteError, match="stage 1, step 12: momentum_buffer of "):
        train(poison=after_step(1, 12, bad_momentum))


def test_a_bad_evaluation_is_named():
    expected = r"stage 0, step 3: the test loss is nan in the evaluation of epoch 1\. Lower"
    with pytest.raises(NonFiniteError, match=expected):
        train("evaluate.every=1", nan_loss(step=1, tests="true"))


def test_sequential_counts_steps_through_all_rounds():
    poison = after_step(1, 4, bad_weights)
    with pytest.raises(NonFiniteError, match=r"stage 1, step 17: the loss is nan .* step 16\)"):
        train("method=sequential", poison=poison)


def test_a_simulation_blames_the_lowest_stage():
    words = ("method=dgl_async", "method.simulate=true")
    with pytest.raises(NonFiniteError, match="stage 0, step 5: the loss is nan"):
        train(*words, poison=after_step(0, 4, bad_weights))


@pytest.fixture
def logged(caplog, monkeypatch):
    """The messages on values that are not finite."""
    monkeypatch.setattr(logging.getLogger("dglpipe"), "propagate", True)
    return lambda: [line for line in caplog.messages if line.startswith("on_nonfinite: ")]


def test_warn_reports_each_stage_once_and_counts(logged, run_dir):
    words = ("on_nonfinite=warn", "log_every=2", "checkpoint.every=6")
    train(*words, run_dir=run_dir, poison=after_step(0, 4, bad_weights))
    told, counted = logged()[:2], logged()[2:]
    for j in range(2):
        assert told[j].startswith(f"on_nonfinite: stage {j}, step 5: the loss is nan (")
        assert counted[j] == f"on_nonfinite: stage {j}: 8 steps without a finite loss"
    assert len(counted) == 2
    assert (RunDir(run_dir).checkpoints / "step_00000012").is_dir()


def test_ignore_says_nothing(logged):
    trainer = train("on_nonfinite=ignore", poison=after_step(0, 4, bad_weights))
    assert logged() == []
    assert all(stage.watch.history.take() == [] for stage in trainer.runner.stages)


def test_the_check_changes_no_weight():
    hashes = [
        [
            sha256(named_tensors(stage.module))
            for stage in train(f"on_nonfinite={policy}").runner.stages
        ]
        for policy in ("stop", "ignore")
    ]
    assert hashes[0] == hashes[1]


# ---------------------------------------------------------------- the cause


def check_of(rank, stages=3):
    """The check of one process of a pipeline, with the findings of other processes in its store."""
    runner = open_runner(stages=stages, processes=stages, rank=rank)
    return FiniteCheck(runner.context, runner.stages), runner


def put(check, rank, finding):
    check._context.group.store.set(f"nonfinite/{rank}", json.dumps(asdict(finding)))


@pytest.fixture(autouse=True)
def short_wait(monkeypatch):
    monkeypatch.setattr("dglpipe.runtime.finite_check.AGREE_S", 0.2)


OWN = Finding(1, 5, LOSS, "the loss is nan")


@pytest.mark.parametrize(
    ("other", "is_cause"),
    [
        (Finding(0, 5, LOSS, "a lower stage"), True),
        (Finding(2, 4, LOSS, "an earlier step"), True),
        (Finding(1, 4, STATE, "an earlier step"), True),
        (Finding(0, 6, LOSS, "a later step"), False),
        (Finding(0, 5, STATE, "the weights after the step"), False),
    ],
    ids=lambda value: value.text if isinstance(value, Finding) else None,
)
def test_the_cause_is_the_earliest_step_then_the_lowest_stage(other, is_cause):
    check, _ = check_of(1)
    put(check, 2 if other.stage == 1 else other.stage, other)
    kind = NonFinitePeerError if is_cause else NonFiniteError
    with pytest.raises(NonFiniteError) as caught:
        check._report([OWN])
    assert type(caught.value) is kind
    assert (other.text in str(caught.value)) == is_cause
    record = failure.record(caught.value, 1, "rank 1", 5)
    assert (record.primary, record.user) == (not is_cause, True)


def test_without_lockstep_the_lowest_stage_is_the_cause():
    check, _ = check_of(1)
    check._is_lockstep = False
    put(check, 0, Finding(0, 90, LOSS, "of the lowest stage"))
    with pytest.raises(NonFinitePeerError, match=r"The cause: .*of the lowest stage"):
        check._report([OWN])


@pytest.mark.parametrize("is_bad", [True, False])
def test_bad_inputs_blame_the_stage_below(is_bad):
    """The stage below may be slow: it reads its own loss later."""
    check, runner = check_of(1)
    arrival = next(arrivals(runner))
    if is_bad:
        arrival.batch.fill_(math.nan)
    runner.inputs = ScriptedInputs([])
    runner.stages[0].learn(arrival.batch, arrival.labels, 1, None)
    kind = NonFinitePeerError if is_bad else NonFiniteError
    with pytest.raises(NonFiniteError) as caught:
        check._report([OWN])
    assert type(caught.value) is kind
    assert ("The cause: the output of stage 0 is not finite" in str(caught.value)) == is_bad
