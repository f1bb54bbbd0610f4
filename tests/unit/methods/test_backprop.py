"""The runner of backprop in one process, on scripted arrivals: a plain loop."""

from __future__ import annotations

import copy

import torch
from torch.nn.functional import cross_entropy

from dglpipe.methods.events import Update
from dglpipe.seeds import derive
from harness.runners import feed, open_runner


def test_two_steps_are_those_of_a_plain_loop():
    runner = open_runner("method=backprop", "model.dropout=0.2", stages=1)
    inputs, (stage,), config = feed(runner), runner.stages, runner.context.plan.config
    plain = copy.deepcopy(stage.module)
    sgd = config.optimizer
    rest = sgd.momentum, 0, sgd.weight_decay, sgd.nesterov
    optimizer = torch.optim.SGD(plain.parameters(), sgd.lr, *rest, fused=True)
    events = runner.run()
    for step in (1, 2):
        assert isinstance(next(events), Update)
        torch.manual_seed(derive(config.seed, "step", 0, 0, step))
        loss = cross_entropy(plain.segments(inputs.taken[-1].batch), inputs.taken[-1].labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = plain.state_dict()
        assert all(
            torch.equal(value, state[key]) for key, value in stage.module.state_dict().items()
        )


def test_a_step_counts_its_rows_and_leaves_no_gradient():
    runner = open_runner("method=backprop", stages=1)
    (stage,), events = runner.stages, runner.run()
    feed(runner)
    for rows in (4, 4, 2):
        next(events)
        assert all(weights.grad is None for weights in stage.module.parameters())
        assert stage.totals().rows == rows
