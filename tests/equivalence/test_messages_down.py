"""Methods with messages down the chain beside the other parts of a run."""

from __future__ import annotations

import json

import pytest
import torch
from test_resume import train_and_die

import dglpipe
from dglpipe.config import DdgConfig, DniConfig, FeaturesReplayConfig
from dglpipe.data import open_data
from dglpipe.methods import build_method, build_run_method
from dglpipe.pipeline.link import Stash
from dglpipe.runtime.evaluate import evaluate_run
from dglpipe.runtime.plan import make_plan, plan_run
from dglpipe.runtime.run_dir import RunDir
from harness.configs import in_test_all, layout, make_config, small
from harness.training import hash_all, run_planned, train_world
from harness.worlds import WorldError

TINY = ("model.width=2", "batch_size=400", "epochs=2")
DNI = ("method=dni", "optimizer.lr=0.0005")
PLUGGED = ("model=custom", "batch_size=400", "epochs=2")


@pytest.mark.slow
def test_per_stage_settings_and_resets_do_not_depend_on_the_processes():
    drops = ("schedule=step", "schedule.every=1", "method.reset_optimizer=true")
    own = "per_stage=[{optimizer:{lr:0.001}},{optimizer:adam},{}]"
    configs = [make_config(*TINY, *words, *drops, own) for words in (("method=ddg",), DNI)]
    assert hash_all(configs, layout(3, 2)) == hash_all(configs, layout(3, 1))


@pytest.mark.parametrize(
    ("network", "method"),
    [
        ("frozen_first", "ddg"),
        *(in_test_all("with_buffers", method) for method in ("ddg", "features_replay", "dni")),
        *(in_test_all("frozen_first", method) for method in ("features_replay", "dni")),
    ],
)
def test_a_resumed_run_with_frozen_weights_or_buffers_ends_the_same(network, method, run_dir):
    words = [*PLUGGED, f"model.target=harness.plug_ins:{network}", f"method={method}"]
    words += ["optimizer.lr=0.0005", "pipeline.split=[1,2]", "checkpoint.every=3"]
    config = make_config(*words, "checkpoint.keep=1")
    whole = train_world(config, layout(3, 1))
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(3, 1), train_and_die, config, run_dir, {0: 5}, [3])
    config.resume = "auto"
    assert train_world(config, layout(3, 2), run_dir).hashes == whole.hashes


@pytest.mark.parametrize("method", ["ddg", in_test_all("features_replay"), in_test_all("dni")])
def test_a_frozen_stage_0_passes_its_output_on(method):
    words = [*PLUGGED, "model.target=harness.plug_ins:frozen_first", f"method={method}"]
    config = make_config(*words, "pipeline.split=[1,2]", "optimizer.lr=0.0005")
    assert hash_all([config], layout(3, 2)) == hash_all([config], layout(3, 1))


def test_one_stage_of_synthetic_gradients_is_backprop():
    one = make_config(*TINY, *DNI)
    other = make_config(*TINY, "method=backprop", "optimizer.lr=0.0005")
    assert hash_all([one], layout(1)) == hash_all([other], layout(1))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (DdgConfig(), [(3, 3, 0), (2, 2, 2), (0, 0, 2)]),
        (FeaturesReplayConfig(), [(3, 0, 0), (2, 0, 2), (0, 0, 2)]),
        (DniConfig(delay=2), [(0, 0, 0), (0, 0, 3), (0, 0, 3)]),
    ],
)
def test_what_is_kept_counts_in_the_plan(settings, expected):
    method = build_method(settings)
    stashes = [method.stash(j, 3) for j in range(3)]
    assert [(one.inputs, one.weights, one.to_below) for one in stashes] == expected
    assert [one.from_above for one in stashes] == [3, 3 if settings.name == "dni" else 2, 0]
    config = make_config()
    plain = build_run_method(config, 3, open_data(config.data, 0).info)
    assert [plain.stash(j, 3) for j in range(3)] == [Stash()] * 3


def test_memory_and_traffic_of_the_plan():
    first, second = plan_run(make_config(*TINY, "method=ddg")).stages
    assert (first.delay, second.delay) == (1, None)
    assert (first.down_bytes_per_sample, second.down_bytes_per_sample) == (
        *(0, first.link_bytes_per_sample),
    )
    plan = make_plan(make_config(*TINY, "method=ddg"), layout(2, 2))
    assert plan.row_bytes_down(1) == second.down_bytes_per_sample
    images, sent = 64 * 4 * 400, first.link_bytes_per_sample * 400
    weights = 4 * (first.parameters + first.head_parameters)
    # Two inputs and two slots from above, a slot to send; two copies of the weights.
    assert first.buffer_bytes == 2 * images + 3 * sent + 2 * weights


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_emulated_links_a_timeline_and_the_finished_run(start, run_dir):
    words = (*TINY, "method=ddg", "pipeline.stages=3")
    more = ("link.delay_ms=20", "timeline=true", "pipeline.checked=true")
    run = start("train", *small(*words, *more, f"run_dir={run_dir}"))
    assert run.wait(200) == 0, run.stderr
    summary = json.loads(RunDir(run_dir).summary.read_text())
    hashes = [stage["weights_sha256"] for stage in summary["per_stage"]]
    assert hashes == train_world(make_config(*words), layout(3)).hashes
    down = [stage["down_bytes_per_sample"] for stage in summary["per_stage"]]
    assert down == [0, *(stage["link_bytes_per_sample"] for stage in summary["per_stage"][:2])]
    assert RunDir(run_dir).timeline.exists()
    trained = dglpipe.load(run_dir)
    exits = trained.exits(torch.zeros(2, 1, 8, 8))
    assert [one is None for one in exits] == [True, True, False]
    accuracy = evaluate_run(run_dir)["accuracy"]
    assert accuracy == [None, None, summary["test"]["accuracy"][2]]
