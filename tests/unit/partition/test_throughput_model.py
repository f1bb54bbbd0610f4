"""Predicted throughput from processes, loader, cores and method."""

from __future__ import annotations

import functools

import pytest

from dglpipe.config import BackpropConfig, LocalConfig, MethodConfig, SequentialConfig
from dglpipe.methods import build_method
from dglpipe.methods.local.base import LocalObjective
from dglpipe.partition.estimate import estimate
from dglpipe.partition.throughput_model import LoaderEstimate, Node, predict
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime import plan as plan_module
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import plan_run as plan
from harness.configs import build_stages, make_config

ROWS = 16
LOCAL = [LocalObjective(LocalConfig(), j, 8, data=None) for j in range(8)]
DGL = build_method(MethodConfig(), LOCAL)
ONE, TWO = Layout(2, 1, 1, 1), Layout(2, 2, 1, 1)
IMAGE = (1, 8, 8)


@functools.cache
def stages(*seconds: float):
    """One stage per value of `seconds` (per step); without values, two stages by FLOPs."""
    config = make_config("model=cnn6")
    count = len(seconds) or 2
    spec = build_stages(config, open_images(config).info, count, meta=True)
    return tuple(estimate(spec, ROWS, seconds or None))


def test_the_speed_up_uses_measured_seconds():
    timed = stages(3.0, 1.0)
    assert predict(timed, ROWS, TWO, DGL).speed_up == pytest.approx(4 / 3)
    assert predict(timed, ROWS, TWO, DGL).bottleneck == "stage 0"
    assert predict(timed, ROWS, ONE, DGL).speed_up == pytest.approx(1)
    assert predict(timed, ROWS, ONE, DGL).bottleneck == "stages 0-1"
    assert predict(timed, ROWS, ONE, DGL).samples_per_second == pytest.approx(ROWS / 4)
    twice = predict(timed, ROWS, Layout(2, 2, 2, 1), DGL)
    assert twice.samples_per_second == pytest.approx(2 * ROWS / 3)
    line = Layout(2, 2, 1, 1, "line")
    slowed = predict(timed, ROWS, line, build_method(BackpropConfig(microbatches=4)))
    assert slowed.speed_up == pytest.approx(4 / 3 * 4 / 5)
    by_flops = stages()
    flops = [stage.flops_per_sample for stage in by_flops]
    found = predict(by_flops, ROWS, TWO, DGL)
    assert found.speed_up == pytest.approx(sum(flops) / max(flops))
    assert found.samples_per_second is None


def test_a_loader_with_workers_works_while_stages_compute():
    timed = stages(3.0, 1.0)
    slow = predict(timed, ROWS, TWO, DGL, LoaderEstimate(IMAGE, 8.0, 2))
    assert (slow.samples_per_second, slow.bottleneck) == (pytest.approx(ROWS / 8), "loader")
    assert slow.speed_up == pytest.approx(1), "one process would wait as long"
    quick = predict(timed, ROWS, TWO, DGL, LoaderEstimate(IMAGE, 1.0, 2))
    assert (quick.samples_per_second, quick.bottleneck) == (pytest.approx(ROWS / 3), "stage 0")


def test_images_in_memory_take_time_of_stage_0():
    timed = stages(3.0, 1.0)
    found = predict(timed, ROWS, TWO, DGL, LoaderEstimate(IMAGE, 1.0, 0))
    assert (found.samples_per_second, found.bottleneck) == (pytest.approx(ROWS / 4), "stage 0")
    assert found.speed_up == pytest.approx(5 / 4)
    even = predict(stages(1.0, 3.0), ROWS, TWO, DGL, LoaderEstimate(IMAGE, 1.0, 0))
    assert even.samples_per_second == pytest.approx(ROWS / 3)
    slow = predict(timed, ROWS, TWO, DGL, LoaderEstimate(IMAGE, 5.0, 0))
    assert (slow.samples_per_second, slow.bottleneck) == (pytest.approx(ROWS / 8), "loader")


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(8, 4.0), (4, 2.0), (2, 2.0), (64, 4.0)],
    ids=["all cores each", "half of them", "cores to spare", "more than cores"],
)
def test_replicas_share_the_decoders_of_a_machine(workers, seconds):
    """Eight cores for two loaders; one loader alone makes a batch in 2 s."""
    layout, node = Layout(2, 2, 2, 1), Node(8, computes=False)
    loader = LoaderEstimate(IMAGE, 2.0, workers)
    found = predict(stages(0.5, 0.5), ROWS, layout, DGL, loader, node)
    assert found.loader.seconds_per_step == pytest.approx(seconds)
    assert found.samples_per_second == pytest.approx(2 * ROWS / seconds)
    assert found.bottleneck == "loader"


def test_processes_share_the_cores():
    timed = stages(1.0, 1.0, 1.0, 1.0)
    four = Layout(4, 4, 1, 1)
    free, tight = (predict(timed, ROWS, four, DGL, None, Node(cores)) for cores in (4, 2))
    assert (free.samples_per_second, free.speed_up) == (pytest.approx(ROWS), pytest.approx(4))
    assert (tight.samples_per_second, tight.speed_up) == (pytest.approx(ROWS / 2), 2)
    assert (free.bottleneck, tight.bottleneck) == ("stage 0", "cores")
    gpus = predict(timed, ROWS, four, DGL, None, Node(2, computes=False))
    assert gpus.samples_per_second == pytest.approx(ROWS)
    threads = predict(timed, ROWS, Layout(4, 4, 1, 2), DGL, None, Node(4))
    assert threads.samples_per_second == pytest.approx(ROWS / 2), "8 threads on 4 cores"
    replicas = predict(timed, ROWS, Layout(4, 4, 2, 1), DGL, None, Node(4))
    assert replicas.samples_per_second == pytest.approx(2 * ROWS / 2)


def test_decoders_take_cores_from_stages():
    loader = LoaderEstimate(IMAGE, 2.0, 2)
    found = predict(stages(1.0, 1.0), ROWS, TWO, DGL, loader, Node(2))
    assert found.samples_per_second == pytest.approx(ROWS / 3), "4 s of decoding, 2 of learning"
    assert found.bottleneck == "cores"


def test_sequential_stages_are_not_predicted_as_parallel():
    """A stage learns in its round; the stages below only forward, at the same time."""
    timed = stages(3.0, 3.0)
    forward = (timed[0].flops_per_sample - timed[0].head_flops_per_sample) / 3
    frozen = 3.0 * forward / timed[0].flops_per_sample
    assert 0 < frozen < 1
    two = predict(timed, ROWS, TWO, build_method(SequentialConfig(), LOCAL))
    assert two.samples_per_second == pytest.approx(ROWS / 3)
    assert two.speed_up == pytest.approx((3 + 3 + frozen) / (3 + 3))
    one = predict(timed, ROWS, ONE, build_method(SequentialConfig(), LOCAL))
    assert one.speed_up == pytest.approx(1)
    assert one.samples_per_second == pytest.approx(2 * ROWS / (6 + frozen))


WORDS = ("pipeline.stages=3", "pipeline.processes=3", "pipeline.threads=null")
TIMES = {"segments": [0.01] * 6, "input_gradients": [0.0] * 6, "heads": [0.0] * 5}


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(plan_module, "cores", lambda: 2)


def test_a_plan_measures_the_loader_and_knows_the_cores(two_cores, capsys, monkeypatch):
    monkeypatch.setattr(plan_module, "loading_seconds", lambda *_: 0.01)
    config = make_config(*WORDS, "pipeline.cost=time")
    config.pipeline.times = TIMES
    found = plan(config)
    assert found.loader.output_shape == IMAGE
    assert found.loader.workers == 0
    assert found.loader.seconds_per_step == 0.01
    assert found.bottleneck == "cores"
    assert found.samples_per_second == pytest.approx(400 / (0.03 + 0.01 / 2))
    assert "3 processes x 1 threads (pipeline.threads) on 2 cores" in capsys.readouterr().err


def test_a_plan_by_flops_warns_too_and_measures_nothing(two_cores, capsys, monkeypatch):
    monkeypatch.setattr(plan_module, "loading_seconds", lambda *_: pytest.fail("measured"))
    found = plan(make_config(*WORDS))
    assert (found.loader.seconds_per_step, found.samples_per_second) == (None, None)
    assert "CPU oversubscription" in capsys.readouterr().err
    plan(make_config("pipeline.stages=2"))
    assert capsys.readouterr().err == ""
