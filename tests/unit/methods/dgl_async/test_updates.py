import pytest
import torch
from torch import nn

from dglpipe.methods.dgl_async.updates import StageUpdates
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.pipeline.stage_module import StageModule
from harness.configs import make_config

CPU = Device(torch.device("cpu"), "gloo")


def paced(reset, *overrides, steps=6):
    config = make_config("optimizer.lr=0.1", "schedule=step", "schedule.every=1", *overrides)
    torch.manual_seed(0)
    learner = StageModule(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)))
    length = RunLength(steps, 2)
    learning = Learning(resets=reset)
    stage = Stage(0, learner, config.stage(0), learning, CPU, length, 0)
    return StageUpdates(stage, steps)


def batch():
    return torch.ones(5, 4), torch.zeros(5, dtype=torch.int64)


@pytest.mark.parametrize("reset", [True, False])
def test_momentum_is_lost_at_each_drop_of_the_rate(reset):
    """Drops follow updates 2 and 4."""
    pace, fresh = paced(reset), []
    for _ in range(6):
        before = dict(pace.stage.optimizer.state)
        seen = [one["momentum_buffer"].clone() for one in before.values()]
        pace.learn(*batch(), None)
        now = [one["momentum_buffer"] for one in pace.stage.optimizer.state.values()]
        momentum = pace.stage.settings.optimizer.momentum
        # A buffer that was not cleared is its old value times the momentum, plus the gradient.
        gradients = [new - momentum * old for new, old in zip(now, seen, strict=False)]
        fresh.append(not seen or all(one.abs().max() > 10 for one in gradients))
        for one in pace.stage.optimizer.state.values():
            one["momentum_buffer"].fill_(1000.0)  # would show in the next one
    assert fresh == [True, False, reset, False, reset, False]


def test_a_stage_that_is_done_sends_outputs_and_does_not_change():
    pace, handed = paced(False, steps=2), []
    for _ in range(2):
        pace.learn(*batch(), handed.append)
    weights = [tensor.clone() for tensor in pace.stage.module.state_dict().values()]
    assert pace.is_done
    for _ in range(2):
        pace.learn(*batch(), handed.append)
        pace.eval_mode(True)
        pace.eval_mode(False)
    assert len(handed) == 4
    assert torch.equal(handed[2], handed[3]), "in evaluation mode, dropout is off"
    after = pace.stage.module.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(weights, after, strict=True))
    assert pace.count == 2
