"""Timelines as a trace and as a picture."""

from __future__ import annotations

import itertools
import json

import pytest
from torchvision.io import decode_image

from dglpipe.monitoring.timers import Kind, Span, Timer
from dglpipe.monitoring.trace import SPAN_NAMES, TracingTimer, merge, write_part
from dglpipe.monitoring.trace_plot import COLOURS, _middle, draw_timeline
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.topology import Layout
from harness.configs import in_test_all, layout, make_config
from harness.training import make_trainer, run_planned, train_world


def test_spans_are_consecutive_and_sum_to_the_fractions():
    timer = TracingTimer()
    for step in (1, 2):
        timer.steps_to(step)
        timer.lap(0, Kind.LOADING)
        timer.lap(0, Kind.BUSY, "forward")
        timer.lap(1, Kind.BUSY, "step")
    spans = timer.spans()
    assert [(span.stage, span.what, span.step) for span in spans] == [
        *((0, "load", 1), (0, "forward", 1), (1, "step", 1)),
        *((0, "load", 2), (0, "forward", 2), (1, "step", 2)),
    ]
    for before, after in itertools.pairwise(spans):
        assert before.start + before.duration == after.start
    spent = timer.snapshot()
    assert spent[0, Kind.BUSY] == sum(span.duration for span in spans if span.what == "forward")
    assert not Timer.is_tracing


def test_parts_are_put_together(tmp_path):
    parts = [tmp_path / f"{rank}.json" for rank in range(2)]
    write_part(parts[0], 0, "rank 0 (stage 0)", [Span(0, "forward", 5_000, 2_000, 1)])
    write_part(parts[1], 1, "rank 1 (stage 1)", [Span(1, "receive", 6_000, 1_500, 1)])
    merge(parts, tmp_path / "t.json", tmp_path / "t.png")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {(one["pid"], one["name"]): one["args"]["name"] for one in events if one["ph"] == "M"}
    assert names[1, "process_name"] == "rank 1 (stage 1)"
    assert names[1, "thread_name"] == "stage 1"
    spans = [one for one in events if one["ph"] == "X"]
    assert [(one["ts"], one["dur"], one["pid"], one["tid"]) for one in spans] == [
        *((0.0, 2.0, 0, 0), (1.0, 1.5, 1, 1)),
    ]
    assert decode_image(str(tmp_path / "t.png")).shape[0] in (3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.png"]


def test_a_picture_without_spans_is_no_error(tmp_path):
    part = tmp_path / "0.json"
    write_part(part, 0, "rank 0", [])
    merge([part], tmp_path / "t.json", tmp_path / "t.png")
    assert (tmp_path / "t.png").exists()


def steps_of(stage, pace, count, first=0, number=1):
    """Forward and backward of `count` steps, each as long as `pace`."""
    return [
        Span(stage, what, first + at * pace + part * pace // 2, pace // 2, number + at)
        for at in range(count)
        for part, what in enumerate(("forward", "backward"))
    ]


def length(spans):
    return max(one.start + one.duration for one in spans) - min(one.start for one in spans)


def test_the_picture_shows_six_steps_of_the_middle():
    shown = _middle([*steps_of(0, 100, 50), *steps_of(1, 100, 50, first=50)])
    assert {span.step for span in shown if span.stage == 1 and span.duration} >= set(range(23, 29))
    assert 600 <= length(shown) <= 700


def test_the_picture_of_stages_of_different_speed_is_limited_in_time():
    """Stage 1 reaches step 200 when stage 0 has done ten times as many steps."""
    spans = [*steps_of(0, 100, 4000), *steps_of(1, 1000, 400)]
    shown = _middle(spans)
    assert {span.stage for span in shown} == {0, 1}
    assert 0 < length(shown) <= 12 * 1000


@pytest.mark.parametrize(
    "spans",
    [
        [*steps_of(0, 100, 50, first=9000, number=500), *steps_of(1, 1000, 15)],
        [*steps_of(0, 100, 50), *steps_of(1, 100, 50, first=90_000, number=500)],
        [Span(0, "evaluation", 5, 10, 0)],
    ],
    ids=["the steps of the quick stage were dropped", "no moment in common", "no step"],
)
def test_the_picture_is_never_blank(spans):
    # Times are since the epoch, so no time is near 0.
    shown = _middle([span._replace(start=span.start + 10**18) for span in spans])
    assert shown
    assert length(shown) > 0


def test_a_picture_has_one_collection_a_kind_and_row(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    calls = []
    draw_bars = Axes.broken_barh

    def count(self, *args, **kwargs):
        calls.append(args)
        return draw_bars(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "broken_barh", count)
    draw_timeline([*steps_of(0, 100, 4000), *steps_of(1, 1000, 400)], tmp_path / "t.png")
    assert len(calls) == 4


def test_every_part_of_a_step_has_a_colour():
    assert set(SPAN_NAMES.values()) - {"compute"} <= COLOURS.keys()


PARTS = {"load", "forward", "backward", "step"}
RUNS = {
    "dgl": (layout(2), PARTS | {"send", "head", "wait"}),
    "sequential": (layout(2), PARTS | {"send", "wait"}),
    "backprop": (Layout(2, 2, 1, 1, "line"), PARTS | {"send"}),
}


def spans_of(group: ProcessGroup, plan):
    trainer = make_trainer(group, plan)
    trainer.run()
    return trainer.context.timer.spans()


@pytest.mark.parametrize("method", RUNS)
def test_all_parts_of_all_steps_are_there(method):
    world, parts = RUNS[method]
    config = make_config(f"method={method}", "timeline=true", "max_steps=4")
    by_rank = run_planned(world, spans_of, config)
    found = [{span.what for span in spans if span.step} for spans in by_rank]
    assert parts | {"evaluation", "log"} <= found[0]
    assert {"receive", "forward", "backward", "step", "evaluation"} <= found[1]
    steps = 8 if method == "sequential" else 4
    assert {span.step for span in by_rank[0]} >= set(range(1, steps + 1))
    # All times come from one clock: a message is received after it was sent.
    if method == "dgl":
        sent = next(span for span in by_rank[0] if span.what == "send")
        received = next(span for span in by_rank[1] if span.what == "receive")
        assert sent.start < received.start + received.duration


ACCOUNTED = {
    "method=dgl": layout(2),
    "method=dgl_async": layout(2),
    "method=sequential": layout(2),
    "method=backprop": layout(1),
    "method=backprop method.schedule=zbv method.microbatches=2": Layout(4, 2, 1, 1, "v"),
}


@pytest.mark.parametrize(
    "words", [words if words == "method=dgl" else in_test_all(words) for words in ACCOUNTED]
)
def test_little_time_is_left_over(words):
    config = make_config(*words.split(), "epochs=2", "evaluate.every=0", "model.width=32")
    for final in train_world(config, ACCOUNTED[words]).finals:
        # Under 0.005 on a machine with free cores.
        assert 0 <= final["other_fraction"] < 0.1


PIPELINES = {
    "1f1b": Layout(2, 2, 1, 1, "line"),
    "gpipe": Layout(2, 2, 1, 1, "line"),
    "zbv": Layout(4, 2, 1, 1, "v"),
}


@pytest.mark.parametrize("schedule", PIPELINES)
def test_evaluation_in_a_pipeline_has_no_forward_spans(schedule):
    world = PIPELINES[schedule]
    words = (f"method.schedule={schedule}", "method.microbatches=4", "max_steps=3")
    config = make_config("method=backprop", "timeline=true", *words)
    for spans in run_planned(world, spans_of, config):
        assert any(span.what == "evaluation" for span in spans)
        forwards = [span for span in spans if span.what == "forward"]
        # Only the forwards of training: stages of the process x steps x micro-batches. The last
        # stage has separate spans for its loss.
        own = {span.stage for span in forwards}
        with_loss = world.stages - 1 in own
        assert len(forwards) == (len(own) + with_loss) * 3 * 4


def test_a_timeline_changes_no_weight():
    runs = [train_world(make_config(f"timeline={one}"), layout(2)) for one in ("true", "false")]
    assert runs[0].hashes == runs[1].hashes
