"""One stage: a step is the hand-written step of the paper, bit for bit.

x_{j+1} = f_j(x_j; theta_j)         forward
emit x_{j+1}                        before anything else
loss_j = CE(head_j(x_{j+1}), y)     local loss
one optimizer step on (theta_j, head_j)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dglpipe.config import StageConfig
from dglpipe.errors import ConfigError
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.probe import StageProbe
from dglpipe.pipeline.stage import Copies, Learning, RunLength, Stage
from dglpipe.pipeline.stage_module import StageModule
from dglpipe.seeds import derive
from harness.configs import make_config
from harness.plug_ins import WrongHead, WrongLoss

torch.set_num_threads(1)
CPU = Device(torch.device("cpu"), "gloo")
SEED, INDEX, STEPS = 7, 2, 6
LR, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
SGD = (
    "schedule=constant",
    f"optimizer.lr={LR}",
    f"optimizer.momentum={MOMENTUM}",
    f"optimizer.weight_decay={DECAY}",
)


def settings_of(*overrides: str) -> StageConfig:
    return make_config(*SGD, *overrides).stage(0)


def make_segments() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.25)
    )


def make_head() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 5))


def make_modules() -> tuple[nn.Module, nn.Module]:
    """Segments and head, always with the same weights."""
    torch.manual_seed(0)
    return make_segments(), make_head()


def make_stage(*overrides: str, with_head: bool = True, copies: Copies | None = None) -> Stage:
    """The stage under test."""
    segments, head = make_modules()
    module = (
        StageModule(segments, {"head": head}) if with_head else StageModule(segments.append(head))
    )
    length = RunLength(STEPS, steps_per_epoch=2)
    settings = settings_of(*overrides)
    return Stage(INDEX, module, settings, Learning(cross_entropy), CPU, length, SEED, copies)


def learn(stage: Stage, step: int, emit=None, total: int | None = None, rows: int = 4) -> None:
    """One step of the stage under test on the batch of `step`."""
    stage.learn(*batch_of(step, rows), step, emit, total)


def state_of(stage: Stage) -> list[torch.Tensor]:
    """Weights and buffers of segments and head."""
    return [value.clone() for value in stage.module.state_dict().values()]


def batch_of(step: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    batch = torch.randn(rows, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (rows,), generator=generator)
    return batch.to(memory_format=torch.channels_last), labels


def assert_equal(one, other) -> None:
    for left, right in zip(one, other, strict=True):
        assert torch.equal(left, right)


@dataclass
class Reference:
    """The same learner, trained with operations of torch alone."""

    bf16: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        self.modules = nn.ModuleList(make_modules()).to(memory_format=torch.channels_last)
        parameters = self.modules.parameters()
        self.optimizer = torch.optim.SGD(parameters, LR, MOMENTUM, weight_decay=DECAY, fused=True)
        self.losses: list[float] = []

    def learn(self, step: int, rows: int = 4) -> torch.Tensor:
        """One step; returns the features."""
        segments, head = self.modules
        batch, labels = batch_of(step, rows)
        torch.manual_seed(derive(SEED, "step", INDEX, 0, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            features = segments(batch)
            loss = cross_entropy(head(features), labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            gradients = [weights.grad for weights in self.modules.parameters()]
            norm = torch.stack([one.norm() for one in gradients]).norm()
            for one in gradients:
                one *= min(1.0, self.clip / norm.item())
        self.optimizer.step()
        self.losses.append(loss.item())
        return features.detach()

    def state(self) -> list[torch.Tensor]:
        return list(self.modules.state_dict().values())


def assert_close(one, other) -> None:
    """Equal but for the rounding of other operations."""
    torch.testing.assert_close(list(one), list(other), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_step_emits_the_features_of_the_weights_before_it(precision):
    stage, reference = make_stage(f"precision={precision}"), Reference(precision == "bf16")
    emitted, states = [], []

    def emit(features):
        emitted.append(features.detach().clone())
        states.append([value.clone() for value in stage.module.parameters()])

    before = [value.clone() for value in stage.module.parameters()]
    learn(stage, 1, emit)
    assert_equal(emitted, [reference.learn(1)])
    assert_equal(states[0], before)
    assert not torch.equal(next(stage.module.parameters()), before[0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("with_head", [True, False])
def test_steps_equal_plain_torch(precision, with_head):
    stage = make_stage(f"precision={precision}", with_head=with_head)
    reference = Reference(precision == "bf16")
    for step, rows in enumerate((4, 4, 3), 1):
        learn(stage, step, rows=rows)
        reference.learn(step, rows=rows)
        assert_equal(state_of(stage), reference.state())


def test_a_step_leaves_no_gradient():
    stage = make_stage()
    learn(stage, 1)
    assert all(weights.grad is None for weights in stage.module.parameters())


def test_gradients_are_clipped_at_the_norm_of_segments_and_head_together():
    stage, reference = make_stage("optimizer.clip=0.01"), Reference(clip=0.01)
    for step in (1, 2):
        learn(stage, step)
        reference.learn(step)
    assert_close(state_of(stage), reference.state())
    free = make_stage()
    learn(free, 1)
    assert not torch.equal(state_of(free)[0], state_of(make_stage("optimizer.clip=0.01"))[0])


def test_the_norm_of_a_larger_gradient_clips_its_parts():
    """`update(norm=...)`: the stages of a pipeline of backprop are clipped together."""
    alone, part = make_stage("optimizer.clip=1", "optimizer.momentum=0"), make_stage()
    for stage in (alone, part):
        stage.loss(stage.module(batch_of(1)[0], None), batch_of(1)[1]).backward()
    norm = part.squared_norm().sqrt()
    assert norm == pytest.approx(
        torch.stack([one.grad.norm() for one in part.module.parameters()]).norm().item()
    )
    before = [value.clone() for value in alone.module.parameters()]
    gradients = [one.grad.clone() for one in alone.module.parameters()]
    alone.update(1, torch.tensor(10.0))
    expected = [
        value - LR * (gradient / 10 + DECAY * value)
        for value, gradient in zip(before, gradients, strict=True)
    ]
    assert_close([value.detach() for value in alone.module.parameters()], expected)


def test_the_learning_rate_follows_the_schedule():
    stage = make_stage("schedule=step", "schedule.every=1", "schedule.factor=0.1")
    rates = []
    for step in range(1, STEPS + 1):
        learn(stage, step)
        rates.append(stage.optimizer.param_groups[0]["lr"])
    expected = [LR * factor for factor in (1, 1, 0.1, 0.1, 0.01, 0.01)]
    assert rates == pytest.approx(expected)
    assert [stage.learning_rate(step) for step in range(1, STEPS + 1)] == rates


@pytest.mark.parametrize(
    ("words", "cleared"),
    [
        (("schedule=step", "schedule.every=1"), [3, 5]),
        (("schedule=multistep", "schedule.milestones=[2]"), [5]),
        (("schedule=step", "schedule.every=1", "schedule.warmup_steps=1"), [3, 5]),
        # The first drop is hidden by the warmup until the warmup ends.
        (("schedule=step", "schedule.every=1", "schedule.warmup_steps=3"), [4, 5]),
        (("schedule=step", "schedule.every=1", "schedule.factor=1"), []),
    ],
)
@pytest.mark.parametrize("resets", [True, False])
def test_the_optimizer_is_cleared_at_each_drop_of_the_rate(words, cleared, resets):
    segments, head = make_modules()
    module, learning = StageModule(segments, {"head": head}), Learning(cross_entropy, resets=resets)
    length = RunLength(STEPS, steps_per_epoch=2)
    stage = Stage(INDEX, module, settings_of(*words), learning, CPU, length, SEED)
    found = []
    for step in range(1, STEPS + 1):
        kept = [state["momentum_buffer"] for state in stage.optimizer.state.values()]
        learn(stage, step)
        now = [state["momentum_buffer"] for state in stage.optimizer.state.values()]
        if kept and all(one is not other for one, other in zip(kept, now, strict=True)):
            found.append(step)
    assert found == (cleared if resets else [])


def test_the_random_state_depends_on_the_step():
    """Independent of earlier draws: a resumed run drops the same units."""
    emitted = []
    for _ in range(2):
        torch.rand(len(emitted) + 1)
        learn(make_stage(), 3, lambda features: emitted.append(features.detach().clone()))
    assert_equal(emitted[:1], emitted[1:])
    learn(make_stage(copies=Copies(replica=1, count=2)), 3, lambda one: emitted.append(one))
    assert not torch.equal(emitted[0] == 0, emitted[2] == 0), "replicas drop different units"


def test_a_replica_weighs_its_share_of_the_rows():
    """Of 8 rows 3 are here, in one of 2 copies: the mean of the copies is the mean of the rows."""
    plain = ("optimizer.momentum=0", "optimizer.weight_decay=0")
    whole, part = make_stage(*plain), make_stage(*plain, copies=Copies(count=2))
    start = state_of(whole)[0]
    learn(whole, 1, rows=3)
    learn(part, 1, total=8, rows=3)
    step, scaled = (state_of(stage)[0] - start for stage in (whole, part))
    torch.testing.assert_close(scaled, step * 3 * 2 / 8, rtol=1e-4, atol=1e-6)


def test_a_wrapped_module_computes_the_forward():
    calls = []

    def wrap(module):
        def forward(*arguments):
            calls.append(len(arguments))
            return module(*arguments)

        return forward

    stage = make_stage(copies=Copies(wrap=wrap))
    learn(stage, 1)
    assert len(calls) == 1


def test_loss_and_hits_are_counted_until_they_are_taken():
    stage, reference = make_stage(), Reference()
    for step in (1, 2):
        learn(stage, step)
        reference.learn(step)
    totals = stage.totals()
    assert totals.loss == pytest.approx(4 * sum(reference.losses), rel=1e-6)
    assert totals.rows == 8
    assert stage.totals().rows == 0


def test_marks_come_between_the_parts_of_a_step():
    stage, marks = make_stage(), []
    stage.mark = marks.append
    learn(stage, 1, lambda _: marks.append("emitted"))
    learn(stage, 2)
    assert marks == ["emitted", "head", "backward", "forward", "backward"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_does_not_change_training(precision):
    stage = make_stage(f"precision={precision}")
    learn(stage, 1)
    before, momentum = state_of(stage), copy.deepcopy(stage.optimizer.state_dict())
    random = torch.get_rng_state()
    stage.eval_mode(True)
    batch, labels = batch_of(9)
    features, odds = stage.evaluate(batch, labels)
    assert torch.equal(stage.infer(batch), features)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = stage.module.segments(batch)
        logits = stage.module.head(expected)
    assert torch.equal(features, expected)
    assert torch.equal(odds, torch.softmax(logits.float(), dim=1))
    stage.eval_mode(False)
    assert stage.module.training
    assert_equal(state_of(stage), before)
    after = stage.optimizer.state_dict()["state"]
    for key, state in momentum["state"].items():
        assert torch.equal(after[key]["momentum_buffer"], state["momentum_buffer"])
    assert torch.equal(torch.get_rng_state(), random)
    tested = stage.test_totals()
    assert tested.rows == 4
    assert tested.correct == (logits.argmax(1) == labels).sum().item()
    assert stage.totals().rows == 4, "rows of training; testing is counted separately"


def test_a_full_precision_stage_reads_half_precision_inputs():
    stage, features = make_stage(), []
    batch, labels = batch_of(1)
    stage.learn(batch.bfloat16(), labels, 1, features.append)
    assert features[0].dtype is torch.float32


def test_a_stage_without_an_exit_counts_rows():
    stage = make_stage()
    stage.count_rows(5)
    totals = stage.totals()
    assert (totals.rows, totals.loss, totals.correct) == (5, 0.0, 0)


@pytest.mark.parametrize("how", ["flat", "one more", "map", "int", "none"])
def test_wrong_logits_in_training_name_the_stage(how):
    segments, _ = make_modules()
    module = StageModule(segments, {"head": WrongHead(4, 5, how, trains=True)})
    learning = Learning(cross_entropy, classes=5)
    stage = Stage(INDEX, module, settings_of(), learning, CPU, RunLength(STEPS, 2), SEED)
    stage.evaluate(*batch_of(1))
    allowed = r"allowed: floating-point logits of shape \(4, 5\)"
    with pytest.raises(ConfigError, match=rf"^head: got '.* in stage {INDEX}'; {allowed}"):
        learn(stage, 1)


@pytest.mark.parametrize("how", ["vector", "float", "detached", "int", "none"])
def test_a_wrong_loss_names_the_stage(how):
    segments, head = make_modules()
    module = StageModule(segments, {"head": head})
    learning = Learning(WrongLoss(how, step=2))
    stage = Stage(INDEX, module, settings_of(), learning, CPU, RunLength(STEPS, 2), SEED)
    learn(stage, 1)
    with pytest.raises(ConfigError, match=rf"^method\.loss: got .* in stage {INDEX}"):
        learn(stage, 2)
    with pytest.raises(ConfigError, match=rf"^method\.loss: got '.* in stage {INDEX}'"):
        stage.loss(stage.module(batch_of(1)[0]), batch_of(1)[1])


class TestGradientNorm:
    """The measured norm is that of the gradient before scaling and clipping."""

    def measured(self, *overrides, scale=None):
        stage = make_stage("model.dropout=0", *overrides)
        stage.probe = StageProbe(every=1)
        if scale is not None:
            stage.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        images, labels = batch_of(1)
        stage.learn(images, labels, 1, None)
        stage.probe.add_inputs(images)
        return stage.probe.take()[0]

    def test_it_is_the_norm_of_all_gradients_of_segments_and_head(self):
        stage = make_stage()
        images, labels = batch_of(1)
        stage.seed(1)
        cross_entropy(stage.module(images), labels).backward()
        squares = [weight.grad.double().square().sum() for weight in stage.module.parameters()]
        assert self.measured() == pytest.approx(float(sum(squares).sqrt()), rel=1e-5)

    def test_clipping_and_loss_scaling_leave_it_alone(self):
        assert self.measured("optimizer.clip=0.001") == self.measured()
        assert self.measured(scale=1024.0) == pytest.approx(self.measured(), rel=1e-5)

    def test_a_stage_that_learns_nothing_has_none(self):
        stage = make_stage()
        stage.probe = StageProbe(every=1)
        stage.update(1)
        stage.probe.add_inputs(batch_of(1)[0])
        assert stage.probe.take() == (None, None)


@pytest.mark.parametrize(
    ("shape", "channels_at"), [((5, 4, 4), 0), ((4, 4, 5), 2), ((7, 5), 1), ((5, 7), 0), ((5,), 0)]
)
def test_the_drift_compares_channels_wherever_they_are(shape, channels_at):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(70, *shape, generator=generator) * (1 + n) for n in range(2))
    probe = StageProbe(every=1, channels_at=channels_at)
    drifts = []
    for inputs in (first, second):
        probe.add_inputs(inputs[:40])
        probe.add_inputs(inputs[40:])
        drifts.append(probe.take()[1])
    flat = [one.double().movedim(channels_at + 1, 0).flatten(1) for one in (first, second)]
    moments = [torch.stack([one.mean(1), one.std(1, correction=0)]) for one in flat]
    assert moments[0].shape == (2, 5)
    expected = (moments[1] - moments[0]).norm() / moments[0].norm()
    assert drifts == [None, pytest.approx(float(expected), rel=1e-9)]
