"""Cuts by `pipeline.split`, `pipeline.cost` and `pipeline.memory_limit`."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from dataclasses import asdict

import pytest
import torch
from torch import nn

from dglpipe.config import CustomHeadConfig
from dglpipe.errors import ConfigError
from dglpipe.methods import build_run_method
from dglpipe.models import build_network
from dglpipe.models.meta import building
from dglpipe.partition import auto_split, profiling
from dglpipe.partition.auto_split import (
    measure_times,
    measured_costs,
    network_costs,
)
from dglpipe.partition.balance import stage_costs
from dglpipe.partition.cut_problem import CutProblem
from dglpipe.partition.estimate import estimate
from dglpipe.partition.flops import count_flops
from dglpipe.partition.memory import MemoryLimit, optimizer_state
from dglpipe.partition.saved_tensors import saved_bytes
from dglpipe.partition.segments import trace
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.precision import PRECISIONS
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan
from dglpipe.runtime.plan import plan_run as plan
from harness.configs import build_stages, in_test_all, layout, make_config

CPU = Device(torch.device("cpu"), "gloo")
ROWS = 16
NETWORKS = [
    ("model=cnn6",),
    in_test_all(("model=cnn6", "optimizer=adam", "precision=bf16", "model.dropout=0.1")),
    in_test_all(("model=resnet18", "data.image_size=32")),
    ("model=vgg11_bn", "data.image_size=32", "head=cnn"),
    in_test_all(
        ("model=torchvision", "model.name=mobilenet_v3_small", "data.image_size=32", "head=mlp")
    ),
    in_test_all(
        ("model=torchvision", "model.name=swin_t", "data.image_size=32", "optimizer.momentum=0")
    ),
    ("model=cnn6", "per_stage=[{head:linear},{precision:bf16,head:mlp},{optimizer:adam}]"),
    in_test_all(
        ("model=cnn6", "method=dgl_async", "per_stage=[{precision:bf16},{optimizer:adam},{}]")
    ),
]


def on_paper(*overrides):
    config = make_config(*overrides)
    data = open_images(config).info
    with building(True, 0):
        network = build_network(config.model, data.channels, len(data.classes), data.height)
    return config, data, trace(network)


def problem_of(config, data, traced, stages):
    return CutProblem(config, build_run_method(config, stages, data), data, traced, stages)


def measured(config, data, rows):
    return measure_times(config, build_run_method(config, 1, data), data, CPU, 1, rows, 1)


class Whole(nn.Module):
    """A stage with its head."""

    def __init__(self, network, j):
        super().__init__()
        self.learner = network.learner(j)

    def forward(self, batch):
        return self.learner(batch, None)


@pytest.mark.parametrize("overrides", NETWORKS, ids=lambda words: ",".join(words))
def test_costs_and_memory_of_any_cut_equal_those_of_its_stages(overrides):
    """The sum over segments equals the cost of the whole stage."""
    config, data, traced = on_paper(*overrides)
    problem = problem_of(config, data, traced, 3)
    costs, needs = network_costs(problem), problem.memory_needs(ROWS)
    count = len(traced.segments)
    for bounds in [[0, count // 3, 2 * count // 3], [0, 1, count - 1]][: 1 + (count < 10)]:
        config.pipeline.split = bounds[1:]
        network = build_stages(config, data, 3, meta=True)
        shapes = [network.spec.input_shape(j) for j in range(3)]
        flops = [count_flops(Whole(network, j), shapes[j]).own for j in range(3)]
        assert flops == [network.flops(j) for j in range(3)]
        assert stage_costs(costs, bounds) == flops
        stages = estimate(network, ROWS)
        for j, (own, span) in enumerate(
            zip(needs, itertools.pairwise([*bounds, count]), strict=True)
        ):
            found = own.stage(*span)
            assert found.total == stages[j].memory_bytes
            whole = Whole(network, j)
            weights = sum(one.numel() for one in whole.parameters())
            buffers = sum(one.nbytes for one in whole.buffers())
            assert found.weights == 8 * weights + buffers
            assert found.optimizer == 4 * weights * optimizer_state(config.stage(j).optimizer)
            (kept,) = saved_bytes([whole], shapes[j])
            item_bytes = PRECISIONS[config.stage(j).precision.name].item_bytes
            assert found.activations == ROWS * ((kept.own - kept.input) * item_bytes // 4)
            assert found.buffers == ROWS * link_bytes_of(network, j)


def link_bytes_of(network, j):
    """Bytes per row of the buffers of stage `j`: D receive slots and one send slot; with
    policy=overwrite, M + 2 receive slots and D send slots."""
    method, fields = network.config.method, network.spec.fields
    depth = network.config.pipeline.depth
    overwrites = method.name == "dgl_async"
    received, sent = (method.buffer + 2, depth) if overwrites else (depth, 1)
    below = received * fields[j - 1].row_bytes if j else 0
    return below + (sent * fields[j].row_bytes if j < len(fields) else 0)


LIMITED = "model=vgg11_bn"


def draw_limited(limit, *overrides):
    config, data, _ = on_paper(
        LIMITED, "data.image_size=32", f"pipeline.memory_limit={limit}", *overrides
    )
    return build_stages(config, data, 2, meta=True, rows=ROWS).spec.bounds


def needs_of(at):
    """Bytes of the larger of two stages cut at `at`; None: the minimum over all cuts."""
    config, data, traced = on_paper(LIMITED, "data.image_size=32")
    needs, count = problem_of(config, data, traced, 2).memory_needs(ROWS), len(traced.segments)
    at = at or MemoryLimit(0, tuple(needs), per_stage=False).nearest(lambda *_: True)[1]
    return max(needs[0].stage(0, at).total, needs[1].stage(at, count).total), at


def test_a_limit_moves_the_cut():
    free = draw_limited("1TiB", "pipeline.split=auto")
    largest, at = needs_of(None)
    assert draw_limited(largest, "pipeline.split=auto") == (0, at) != free


@pytest.mark.parametrize(("split", "at"), [("auto", None), ("even", 4), ("[1]", 1)])
def test_a_limit_that_cannot_be_met_reports_the_excess(split, at):
    largest, _ = needs_of(at)
    with pytest.raises(ConfigError) as caught:
        draw_limited(1024, f"pipeline.split={split}")
    text = str(caught.value)
    assert text.startswith("pipeline.memory_limit: got 1024; allowed: ")
    assert f"at least {largest} bytes" in text
    assert f"{(largest - 1024) / 2**30:.4g} GiB more than the limit" in text


def test_a_limit_with_tensors_that_segments_share():
    config, data, _ = on_paper("model=custom", "pipeline.memory_limit=1024")
    config.model.target, config.model.args = "harness.plug_ins:sharing_network", {}
    config.pipeline.split = "auto"
    with pytest.raises(ConfigError) as caught:
        build_stages(config, data, 2, meta=True, rows=ROWS)
    found = re.match(
        r"pipeline\.memory_limit: got 1024; allowed: at least (\d+)", str(caught.value)
    )
    config.pipeline.memory_limit = int(found[1])
    assert len(build_stages(config, data, 2, meta=True, rows=ROWS).spec.bounds) == 2


def test_settings_of_a_single_stage_count_for_the_limit():
    config = make_config("optimizer.momentum=0.0", "pipeline.split=even")
    plain = max(stage.memory_bytes for stage in plan(config).stages)
    config = make_config(
        "optimizer.momentum=0.0",
        "pipeline.split=even",
        f"pipeline.memory_limit={plain}",
        "per_stage=[{optimizer:{momentum:0.9}},{optimizer:{momentum:0.9}}]",
    )
    with pytest.raises(
        ConfigError, match=r"^pipeline\.memory_limit: .* with its settings in per_stage"
    ):
        plan(config)


OWN_HEADS = "per_stage=[{head:linear},{head:linear},{}]"
"""Heads that need little memory; the default head would need most of the memory."""


@pytest.mark.parametrize("split", [in_test_all("[4,8]"), in_test_all("even"), "auto"])
def test_a_limit_that_stages_with_their_own_heads_meet(split):
    words = ("model=resnet18", "data.image_size=32", "pipeline.stages=3", OWN_HEADS)
    words += (f"pipeline.split={split}",)
    free = plan(make_config(*words)).stages
    largest = max(stage.memory_bytes for stage in free)
    limited = plan(make_config(*words, f"pipeline.memory_limit={largest}")).stages
    assert [one.segments for one in limited] == [one.segments for one in free]
    with pytest.raises(ConfigError, match="MiB with its settings in per_stage"):
        plan(make_config(*words, "pipeline.memory_limit=1KB"))
    config, data, _ = on_paper(*words)
    config.per_stage, config.pipeline.memory_limit = [], largest
    with pytest.raises(ConfigError):  # so the stages fit only because of their own settings
        config.pipeline.split = [len(free[0].segments), sum(len(s.segments) for s in free[:2])]
        build_stages(config, data, 3, meta=True, rows=400)


@pytest.mark.slow
def test_a_limit_moves_the_cut_between_stages_that_differ():
    """Adam keeps two values per weight: its stage gets the smaller part."""
    words = ("model=cnn6", "model.width=64", "optimizer.momentum=0", "pipeline.split=auto")
    sizes = []
    for own in ("{optimizer:adam},{}", "{},{optimizer:adam}"):
        given = (*words, f"per_stage=[{own}]")
        config, data, traced = on_paper(*given)
        needs = problem_of(config, data, traced, 2).memory_needs(ROWS)
        limit = MemoryLimit(0, tuple(needs), per_stage=True)
        bounds = limit.nearest(lambda *_: True)
        spans = itertools.pairwise([*bounds, len(traced.segments)])
        largest = max(one.stage(*span).total for one, span in zip(needs, spans, strict=True))
        config.pipeline.memory_limit = largest
        assert list(build_stages(config, data, 2, meta=True, rows=ROWS).spec.bounds) == bounds
        sizes.append(bounds[1])
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("limit", ["0", "-1", "6 furlongs", "true", "GiB"])
def test_a_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ConfigError, match=r"^pipeline\.memory_limit: got"):
        make_config(f"pipeline.memory_limit={limit!r}")


def test_units_of_a_limit():
    for text, count in (("1.5KiB", 1536), ("2MB", 2_000_000), ("7", 7), ("3 GiB", 3 * 2**30)):
        assert make_config(f"pipeline.memory_limit='{text}'").pipeline.memory_bytes == count


TIMES = {"segments": [1.0] * 6, "input_gradients": [0.0] * 6, "heads": [0.0] * 5}


def draw_timed(split="auto", **times):
    return draw_by({**TIMES, **times} if times else None, split)


def draw_by(times, split="auto"):
    config, data, _ = on_paper("model=cnn6", f"pipeline.split={split}", "pipeline.cost=time")
    config.pipeline.times = times
    return build_stages(config, data, 2, meta=True).spec.bounds


@pytest.mark.slow
def test_a_cut_uses_the_settings_of_every_stage():
    """The fastest of all cuts, which differs from the cut with equal heads."""
    own = "per_stage=[{head:linear},{head:cnn},{}]"
    config, data, _ = on_paper("model=cnn6", "pipeline.split=auto", own)
    slowest = {}
    for cut in itertools.combinations(range(1, 6), 2):
        config.pipeline.split = list(cut)
        network = build_stages(config, data, 3, meta=True)
        slowest[cut] = max(network.flops(j) for j in range(3))
    config.pipeline.split = "auto"
    found = build_stages(config, data, 3, meta=True).spec.bounds[1:]
    assert slowest[found] == min(slowest.values())
    config.per_stage = []
    assert slowest[build_stages(config, data, 3, meta=True).spec.bounds[1:]] > slowest[found]


def test_a_head_with_its_id_in_the_signature_stays_alive():
    """Otherwise another head could get the same id, and with it the cached FLOPs."""
    work = problem_of(*on_paper("model=cnn6"), 2).flops
    with building(True, 0):
        head = Own(nn.Linear(4, 10))
    gone = weakref.ref(head)
    work.auxiliary([head], (4,))
    del head
    gc.collect()
    assert gone() is not None


class Own(nn.Sequential):
    """A module of an unknown package: its repr does not describe it."""


@pytest.mark.slow
def test_every_kind_of_stage_is_measured_once(monkeypatch):
    measured = []

    def measure(_traced, _shape, auxiliary_at, settings, _device, _rows):
        name = f"{settings.optimizer.name} {settings.precision.name}"
        measured.append((name, str(auxiliary_at(1))))
        return profiling.Times((float(len(measured)),) * 6, (0.0,) * 6, (0.0,) * 5)

    monkeypatch.setattr(auto_split, "measure", measure)
    own = "per_stage=[{},{optimizer:{lr:0.5}},{optimizer:adam},{head:cnn,precision:bf16}]"
    words = ("model=cnn6", "pipeline.split=auto", "pipeline.cost=time", "pipeline.stages=4")
    config = make_plan(make_config(*words, own), layout(4)).config
    stages = plan(config).stages
    assert [settings for settings, _ in measured] == ["sgd fp32", "adam fp32", "sgd bf16"]
    assert len({head for _, head in measured}) == 1, "the last stage has none"
    kinds = [times["segments"][0] for times in config.pipeline.times]
    assert kinds == [1.0, 1.0, 2.0, 3.0]
    seconds = [len(stage.segments) * kind for stage, kind in zip(stages, kinds, strict=True)]
    assert [stage.seconds_per_step for stage in stages] == seconds
    assert max(seconds) == 3.0, "one segment in each of the last two"
    config = make_config(*words, "per_stage=[{},{optimizer:{lr:0.5}},{},{head:linear}]")
    config = make_plan(config, layout(4)).config
    assert config.pipeline.times["segments"] == [4.0] * 6, "all alike: once for all stages"
    plan(make_config(*words, "per_stage=[{},{head:linear},{head:mlp},{}]"))
    assert len({head for _, head in measured[4:]}) == len(measured[4:]) == 3


def test_given_times_determine_the_cut():
    slow = {**TIMES, "segments": [2.0] * 6}
    assert draw_by([slow, TIMES]) == (0, 2)
    assert draw_by([TIMES, slow]) == (0, 4)
    assert draw_timed(heads=[0, 0, 0, 0, 0]) == (0, 3)
    assert draw_timed(segments=[9, 1, 1, 1, 1, 1]) == (0, 1)
    assert draw_timed(segments=[1, 1, 1, 1, 1, 9]) == (0, 5)


def test_times_of_another_network_are_refused():
    with pytest.raises(ConfigError, match=r"^pipeline\.times: got .*'segments': 2"):
        draw_timed(segments=[1, 1])
    with pytest.raises(ConfigError, match=r"^pipeline\.times: got .*'heads': 0"):
        draw_timed("[3]", heads=[])
    with pytest.raises(ConfigError, match=r"^pipeline\.times\[1\]: got .*'segments': 2"):
        draw_by([TIMES, {**TIMES, "segments": [1, 1]}])
    with pytest.raises(ConfigError, match=r"^pipeline\.times: got '3 entries'; allowed: 2 entries"):
        draw_by([TIMES] * 3)
    with pytest.raises(ConfigError, match=r"^pipeline\.cost: got 'time without"):
        draw_timed()


def head_of_16(channels):
    """Fits after layers 2 and 3 only, in a network of width 4."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pool, nn.Linear(16, 10))


def test_cuts_whose_head_cannot_be_built_are_left_out():
    config, data, _ = on_paper("model=cnn6", "model.widths=[4,8,16,16,8,4]", "pipeline.split=auto")
    config.head = CustomHeadConfig(target=f"{__name__}:head_of_16")
    assert build_stages(config, data, 2, meta=True).spec.bounds[1] in (3, 4)
    assert build_stages(config, data, 3, meta=True).spec.bounds == (0, 3, 4)
    with pytest.raises(ConfigError, match=r"^head: got 'Sequential'; allowed: one that works on"):
        build_stages(config, data, 4, meta=True)


def head_of_17(channels):
    """Fits after no layer of that network."""
    return nn.Linear(17, 10)


def test_a_head_that_cannot_be_built_is_reported():
    """The error names this head, not an earlier head that fits at another cut."""
    config, data, _ = on_paper("model=cnn6", "model.widths=[4,8,16,16,8,4]", "pipeline.split=auto")
    own = [
        {"head": {"name": "custom", "target": f"{__name__}:{head}"}}
        for head in ("head_of_16", "head_of_17")
    ]
    config.per_stage = [*own, {}]
    with pytest.raises(ConfigError, match=r"^head: got 'Linear'; allowed: one that works on"):
        build_stages(config, data, 3, meta=True)


def test_cuts_whose_head_cannot_be_built_are_not_measured():
    config, data, _ = on_paper("model=cnn6", "model.widths=[4,8,16,16,8,4]")
    config.head = CustomHeadConfig(target=f"{__name__}:head_of_16")
    (times,) = measured(config, data, 8)
    assert [at for at, one in enumerate(times.heads) if one < float("inf")] == [2, 3]


def test_an_expensive_segment_is_measured_as_a_whole():
    """Wide layers in the middle have the largest measured times, as by FLOPs."""
    overrides = ("model=cnn6", "model.widths=[4,4,128,128,4,4]", "data.image_size=16")
    config, data, _ = on_paper(*overrides)
    (times,) = measured(config, data, 32)
    assert times.segments[3] > 1.5 * times.segments[1]
    pairs = zip(times.input_gradients, times.segments, strict=True)
    assert all(0 <= part < whole for part, whole in pairs)
    assert all(cost > 0 for cost in measured_costs(asdict(times)).stages([0, 3]))


def test_the_overhead_of_a_step_counts_once_per_stage(monkeypatch):
    """A fixed cost of 10 ms a step counts once for a stage, not once for each segment of 5 ms."""
    monkeypatch.setattr(
        profiling,
        "_best_of_rounds",
        lambda tasks: {key: 0.010 if key.startswith("overhead") else 0.015 for key in tasks},
    )
    config, data, _ = on_paper("model=cnn6")
    (times,) = measured(config, data, 8)
    costs = measured_costs(asdict(times))
    assert costs.stages([0]) == pytest.approx([5 * 0.005 + 0.015])
    assert costs.stages([0, 3]) == pytest.approx([3 * 0.005 + 0.015, 2 * 0.005 + 0.015])


@pytest.mark.parametrize(
    ("schedule", "microbatches", "parts"),
    [("1f1b", 8, (3 / 8, 2 / 8, 1 / 8)), ("1f1b", 2, (1, 1, 1 / 2)), ("gpipe", 8, (1, 1, 1))],
)
def test_1f1b_keeps_the_activations_of_micro_batches_in_flight(schedule, microbatches, parts):
    words = ("method=backprop", f"method.schedule={schedule}", "model=cnn6")
    config, data, traced = on_paper(*words, f"method.microbatches={microbatches}")
    network = build_stages(config, data, 3, meta=True)
    found = estimate(network, ROWS)
    needs = problem_of(config, data, traced, 3).memory_needs(ROWS)
    spans = itertools.pairwise([*network.spec.bounds, len(traced.segments)])
    limits = [one.stage(*span).total for one, span in zip(needs, spans, strict=True)]
    assert limits == [one.memory_bytes for one in found]
    config, data, _ = on_paper(*words[:1], "method.schedule=gpipe", "model=cnn6")
    whole = estimate(build_stages(config, data, 3, meta=True), ROWS)
    for one, all_, part in zip(found, whole, parts, strict=True):
        assert one.activation_bytes - one.buffer_bytes == pytest.approx(
            part * (all_.activation_bytes - all_.buffer_bytes), abs=1
        )
