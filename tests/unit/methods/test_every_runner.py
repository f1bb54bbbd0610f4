"""What the runners of all methods in one process share: evaluation, failure, end."""

from __future__ import annotations

import pytest
import torch

from dglpipe.methods.events import Evaluation
from harness.runners import changed, evaluated, fail_at, feed, open_runner, report_of, states

METHODS = {
    "dgl": ((), 3),
    "sequential": (("method=sequential",), 3),
    "backprop": (("method=backprop",), 1),
    "simulation": (("method=dgl_async", "method.simulate=true", "method.order=sequential"), 3),
}


@pytest.fixture(params=METHODS)
def runner(request):
    overrides, stages = METHODS[request.param]
    return open_runner(*overrides, stages=stages)


def test_an_evaluation_changes_no_weight_and_counts_every_row(runner):
    inputs = feed(runner)
    before, evaluations = states(runner.stages), 0
    for event in runner.run():
        if isinstance(event, Evaluation):
            evaluations += 1
            assert changed(runner.stages, before) == []
            test, logits = inputs.taken[-1], inputs.taken[-1].batch
            for stage in runner.stages:
                logits = evaluated(stage, logits)
            totals = [stage.test_totals() for stage in runner.stages if stage.module.is_exit]
            assert all(total.rows == 2 for total in totals)
            loss = torch.nn.functional.cross_entropy(logits, test.labels)
            assert totals[-1].loss == pytest.approx(2 * loss.item())
        before = states(runner.stages)
    assert evaluations == runner.context.plan.schedule.rounds


def test_a_failure_is_reported_with_its_process_and_step(runner):
    feed(runner)
    fail_at(runner.stages[-1], 2)
    with pytest.raises(ZeroDivisionError) as caught:
        list(runner.run())
    last = runner.stages[-1].index
    step = 2 + 3 * last * (runner.context.plan.schedule.rounds > 1)
    stages = f"stages 0-{last}" if last else "stage 0"
    assert f"rank 0 ({stages}) failed at step {step}: ZeroDivisionError: on purpose" in report_of(
        runner, caught.value
    )


def test_close_ends_the_inputs(runner):
    inputs = feed(runner)
    list(runner.run())
    assert not inputs.is_closed
    runner.close()
    assert inputs.is_closed
