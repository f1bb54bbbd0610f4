"""`link.*` changes the speed of links and nothing else."""

from __future__ import annotations

import json

import pytest

from dglpipe.runtime.run_dir import RunDir
from harness.configs import layout, make_config, small
from harness.training import train_world

STEPS = ("max_steps=12", "epochs=3", "evaluate.every=0")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dgl", "dgl_async"])
def test_weights_do_not_depend_on_the_speed_of_a_link(method, start, run_dir):
    words = [f"method={method}", *STEPS]
    if method == "dgl_async":
        words.append("method.policy=block")
    whole = train_world(make_config(*STEPS), layout(2)).hashes
    slow = ("link.delay_ms=100", "link.bandwidth_mbps=1000")
    run = start("train", *small(*words, *slow, f"run_dir={run_dir}"))
    assert run.wait() == 0, run.stderr
    summary = json.loads(RunDir(run_dir).summary.read_text())
    assert [stage["weights_sha256"] for stage in summary["per_stage"]] == whole
    # Of 400 rows, one every 0.1 s.
    assert summary["throughput"]["samples_per_second"] < 4400


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("link.delay_ms=-1", "link.delay_ms: got -1.0"),
        ("link.bandwidth_mbps=0", "link.bandwidth_mbps: got 0.0"),
    ],
)
def test_refuses(word, text, start):
    run = start("train", *small(word))
    assert run.wait() == 2
    assert text in run.stderr
