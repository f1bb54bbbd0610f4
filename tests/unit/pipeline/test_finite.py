"""Values that are NaN or infinite in the tensors of a stage are found by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dglpipe.pipeline.device import Device
from dglpipe.pipeline.finite import nonfinite
from dglpipe.pipeline.stage import Learning, RunLength, Stage
from dglpipe.pipeline.stage_module import StageModule
from harness.configs import make_config

CPU = Device(torch.device("cpu"), "gloo")


def make_stage(*overrides, mask=0.0):
    torch.manual_seed(0)
    segments = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    segments.register_buffer("mask", torch.full((3,), mask))
    module = StageModule(segments, {"head": nn.Linear(8, 3)})
    config = make_config("schedule=constant", *overrides)
    return Stage(0, module, config.stage(0), Learning(), CPU, RunLength(9, 9), 0)


def learn(stage, step, images=1.0):
    stage.learn(torch.rand(4, 1, 4, 4) * images, torch.tensor([0, 1, 2, 0]), step, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bad_tensors_are_named_in_order(value):
    tensors = {name: torch.zeros(3) for name in "abc"}
    assert nonfinite(tensors.items()) == []
    for name in "ac":
        tensors[name][1] = value
    assert nonfinite(tensors.items()) == ["a", "c"]


def test_large_values_and_whole_numbers_are_finite():
    large, whole = torch.full((5,), 3e38), torch.ones(2, dtype=torch.int64)
    assert nonfinite({"large": large, "whole": whole}.items()) == []
    assert nonfinite({}.items()) == []


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "head.bias", "mask"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_and_buffers_of_a_stage(name, value):
    stage = make_stage()
    learn(stage, 1)
    assert stage.watch.first_nonfinite(stage.scaler) is None
    key = name if name.startswith("head") else f"segments.{name}"
    stage.module.state_dict()[key].view(-1)[0] = value
    assert stage.watch.first_nonfinite(stage.scaler) == name


def test_state_of_the_optimizer():
    """The square of a gradient of 1e25 is infinite: Adam then never changes this weight again."""
    stage = make_stage("optimizer=adam")
    learn(stage, 1)
    next(iter(stage.optimizer.state.values()))["exp_avg_sq"][0] = math.inf
    assert stage.watch.first_nonfinite(stage.scaler) == "exp_avg_sq of 0.weight"


def test_a_mask_that_is_infinite_from_the_start_is_no_error():
    stage = make_stage(mask=-math.inf)
    assert stage.watch.first_nonfinite() == "mask"
    stage.watch.begin()
    assert stage.watch.first_nonfinite(stage.scaler) is None
    stage.module.segments[1].running_mean[0] = math.nan
    assert stage.watch.first_nonfinite(stage.scaler) == "1.running_mean"


def test_losses_by_step():
    stage = make_stage()
    for step, images in ((3, 1.0), (4, math.nan), (5, 1.0)):
        learn(stage, step, images)
    found = stage.watch.history.take()
    assert [step for step, _ in found] == [3, 4, 5]
    assert [math.isfinite(loss) for _, loss in found] == [True, False, False]
    assert stage.watch.history.take() == []


def test_inputs():
    stage = make_stage()
    assert stage.watch.has_finite_inputs()
    images = torch.full((4, 1, 4, 4), math.nan)
    stage.learn(images, torch.tensor([0, 1, 2, 0]), 1, None)
    assert not stage.watch.has_finite_inputs()
    del images
    assert stage.watch.has_finite_inputs(), "no longer in memory"


class TestLossScaling:
    """With fp16, a step with infinite gradients is skipped: no error, until no scale is left."""

    def make(self, scale=2.0**20):
        stage = make_stage()
        stage.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return stage

    def step(self, stage, step, overflows):
        images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        loss = stage.loss(stage.module(images), torch.tensor([0, 1, 2, 0]))
        (loss if stage.scaler is None else stage.scaler.scale(loss)).backward()
        if overflows:
            next(stage.module.parameters()).grad.fill_(math.inf)
        stage.update(step)

    def test_a_skipped_step_is_no_error(self):
        stage = self.make()
        before = next(stage.module.parameters()).clone()
        self.step(stage, 1, overflows=True)
        assert torch.equal(next(stage.module.parameters()), before)
        assert stage.watch.first_nonfinite(stage.scaler) is None
        assert all(math.isfinite(loss) for _, loss in stage.watch.history.take())

    def test_a_skipped_first_step_leaves_no_trace(self):
        """The momentum of the fused SGD would begin with undefined values."""
        skipped, plain = self.make(scale=2.0), make_stage()
        self.step(skipped, 1, overflows=True)
        for step in (2, 3):
            for stage in (skipped, plain):
                self.step(stage, step, overflows=False)
        for one, other in zip(skipped.module.parameters(), plain.module.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_steps_that_are_all_skipped_are_an_error(self):
        stage = self.make()
        for step in range(1, 46):
            self.step(stage, step, overflows=True)
        assert stage.watch.first_nonfinite(stage.scaler) == "every gradient"
