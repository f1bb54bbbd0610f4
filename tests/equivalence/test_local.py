"""Local objectives equal plain loops, for every number of processes."""

from __future__ import annotations

import functools
import json

import local_oracle
import pytest
import torch
from safetensors.torch import load_file
from test_resume import train_and_die

from dglpipe.runtime.evaluate import evaluate_run
from dglpipe.runtime.inference import export_run
from dglpipe.runtime.run_dir import RunDir
from harness.commands import Command
from harness.configs import SMALL, in_test_all, layout, make_config
from harness.training import hash_all, run_planned, train_world
from harness.worlds import WorldError

TINY = ("model.width=2", "batch_size=400", "max_steps=6", "model.dropout=0.2")
"""The fourth batch has 237 rows."""
CHANNELS = {2: (4,), 3: (4, 8), 6: (2, 4, 4, 8, 8)}
"""Stages -> channels of what the heads read."""
OBJECTIVES = {
    "infopro": ("local.reconstruction=[5.0,1.0]",),
    "infopro, small": ("local.reconstruction=[5.0,1.0]", "local.decoder_size=4"),
    "predsim": ("local.similarity=0.9",),
    "auglocal": (),
    "trgl": ("local.tau=0.5",),
    "man": ("local.every=2", "local.lag=1", "local.momentum=0.9"),
    "warm-up": ("local.head_warmup=2",),
    "man, fixed": ("local.every=2", "local.lag=3", "local.momentum=0.9", "local.scale=fixed"),
    "man, locked": ("local.every=2", "local.lag=0", "local.momentum=0.9"),
    "task": (
        *("optimizer.head_lr_factor=0.5", "optimizer.head_weight_decay=0.01", "head.dropout=0.3"),
        *("local.head_warmup=2", "per_stage=[{},{local:{label_smoothing:0.1}},{}]"),
    ),
}
QUICK = ("infopro", "trgl", "task", "man")
WORLDS = [(3, 2), *(in_test_all(*one) for one in ((2, 1), (2, 2), (3, 1), (3, 3), (6, 3), (6, 6)))]


def network(name):
    if name == "trgl":
        return ("model=resnet20_cifar", "batch_size=400", "max_steps=3")
    return TINY


def settings(name, precision):
    local = "task" if name == "warm-up" else name.partition(",")[0]
    return (*network(name), f"local={local}", *OBJECTIVES[name], f"precision={precision}")


@functools.cache
def by_oracle(name, stages):
    own = ("head.dropout=0.3",) if name == "task" else ()
    if name.startswith("man"):
        own = ("head.reads=output",)
    plain = [make_config(*network(name), *own, f"precision={one}") for one in ("fp32", "bf16")]

    def man(lag, learns=True):
        return local_oracle.Man(plain[0], lag, learns)

    objective = {
        "infopro": lambda: local_oracle.Infopro(CHANNELS[stages], 8),
        "infopro, small": lambda: local_oracle.Infopro(CHANNELS[stages], 4),
        "predsim": lambda: local_oracle.Predsim(CHANNELS[stages]),
        "auglocal": local_oracle.Auglocal,
        "trgl": local_oracle.Trgl,
        "man": lambda: man(1),
        "man, fixed": lambda: man(3, learns=False),
        "man, locked": lambda: man(0),
        "task": local_oracle.Settings,
        "warm-up": local_oracle.Warmup,
    }[name]
    return [local_oracle.train(config, stages, objective()) for config in plain]


@pytest.mark.parametrize(("stages", "processes"), WORLDS)
@pytest.mark.parametrize("name", [one if one in QUICK else in_test_all(one) for one in OBJECTIVES])
def test_weights_equal_a_plain_loop_on_any_number_of_processes(name, stages, processes):
    if name in ("auglocal", "task") and stages != 3:
        pytest.skip("settings for three stages")
    configs = [make_config(*settings(name, precision)) for precision in ("fp32", "bf16")]
    assert hash_all(configs, layout(stages, processes)) == by_oracle(name, stages)


EVERYWHERE = ("local=infopro", "local.reconstruction=[5.0,1.0]")
"""The image goes to the last stage but one."""


@pytest.mark.parametrize(
    ("method", "same"),
    [
        ("method=dgl_async method.policy=block", True),
        in_test_all("method=dgl_async method.simulate=true method.buffer=1 "
                    "method.order=sequential method.warmup=false", True),
        in_test_all("method=sequential", False),
    ],
)  # fmt: skip
def test_other_methods_have_the_same_objectives(method, same):
    words = (*TINY, *EVERYWHERE)
    config = make_config(*words, *method.split())
    alone = "simulate" in method
    (found,) = hash_all([config], layout(3, 1 if alone else 3))
    wanted = make_config(*words) if same else config
    assert found == hash_all([wanted], layout(3, 1))[0]


FOLLOWING = ("local=man", "local.every=1", "local.lag=2", "local.momentum=0.9")
"""Two messages are under way at a checkpoint."""


SOME = (
    "per_stage=[{local:{name:man,lag:2,every:2,momentum:0.5}},{},{local:{name:man,lag:0}},{}]",
    "local.head_warmup=1",
)
"""Weights come down two of three links, at different times."""


@pytest.mark.parametrize("processes", [2, in_test_all(4)])
def test_weights_come_down_some_links(processes):
    config = make_config(*TINY, *SOME)
    assert hash_all([config], layout(4, processes)) == hash_all([config], layout(4, 1))


@pytest.mark.slow
@pytest.mark.parametrize("local", [EVERYWHERE, FOLLOWING])
def test_a_killed_run_resumes(local, run_dir):
    more = ("optimizer.lookahead=2", "checkpoint.every=3", "checkpoint.keep=1")
    config = make_config(*TINY, *local, *more)
    with pytest.raises(WorldError, match="exit code -9"):
        run_planned(layout(3, 3), train_and_die, config, run_dir, {2: 5}, [3])
    config.resume = "auto"
    resumed = train_world(config, layout(3, 3), run_dir)
    assert min(line.step for line in resumed.lines if line.kind == "train") > 3
    assert resumed.hashes == train_world(config, layout(3, 1)).hashes


@pytest.mark.slow
@pytest.mark.parametrize(("local", "more"), [(EVERYWHERE, "decoder."), (FOLLOWING, "head.average")])
def test_replicas_average_the_gradients_of_all_modules(local, more):
    """Each replica has half of the rows; without batch norm over a batch both halves count."""
    config = make_config(*TINY, *local, "max_steps=4", "pipeline.replicas=2")
    run = train_world(config, layout(2, 2, replicas=2))
    for stage in range(2):
        one, other = (run.tensors[replica, stage] for replica in (0, 1))
        weights = [key for key in one if "running" not in key and "num_batches" not in key]
        assert any(key.startswith(more) for key in weights) == (stage == 0)
        assert all(torch.equal(one[key], other[key]) for key in weights)


@pytest.mark.slow
def test_extra_modules_are_saved_and_left_out_of_exports(tmp_path):
    words = ("train", *SMALL, *TINY, *EVERYWHERE, "max_steps=2", "pipeline.processes=1")
    command = Command((*words, "pipeline.stages=3", "run_dir=run"), tmp_path, {})
    assert command.wait() == 0, command.stderr
    run = RunDir(tmp_path / "run")
    parts = [load_file(run.final(j)) for j in range(3)]
    prefixes = [{key.partition(".")[0] for key in part} for part in parts]
    assert [{"head", "decoder"} <= one for one in prefixes] == [True, True, False]
    reported = json.loads(run.summary.read_text())
    evaluated = evaluate_run(tmp_path / "run")
    assert evaluated["accuracy"] == pytest.approx(reported["test"]["accuracy"])
    export_run(tmp_path / "run", tmp_path / "network.safetensors")
    own = set(load_file(tmp_path / "network.safetensors"))
    assert own == {k for part in parts for k in part if not k.startswith(("head.", "decoder."))}
