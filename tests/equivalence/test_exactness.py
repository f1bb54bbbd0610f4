"""K stages on P processes compute what one plain loop computes, bit for bit.

| tick | 1 | 2 | 3 | 4 |
|---|---|---|---|---|
| stage 0 | batch 1 | batch 2 | batch 3 | batch 4 |
| stage 1 | | batch 1 | batch 2 | batch 3 |
| stage 2 | | | batch 1 | batch 2 |

Stage j at tick s works on batch s - j with the weights after batch s - j - 1: the same
numbers as stage after stage on one batch after the other.
"""

from __future__ import annotations

import functools
import itertools

import oracle
import pytest
import torch

from dglpipe.data import open_data
from dglpipe.data.batch_schedule import Phase, build_batch_schedule
from harness.configs import WORLDS, build_stages, in_test_all, layout, make_config
from harness.training import hash_all, train_all

DROPOUT = "model.dropout=0.2"
TINY = ("model.width=2", "batch_size=1000", "max_steps=3", DROPOUT)
"""Steps of 1000, 437 and 1000 rows, an evaluation after the second and the third."""


def assert_same_weights(first, second):
    """Every stage of two runs ended with the same bits."""
    assert len(first) == len(second) > 0
    assert first == second


def test_the_plan_has_an_uneven_batch_and_an_evaluation_in_the_middle():
    config = make_config(*TINY)
    items = list(build_batch_schedule(config, open_data(config.data, config.seed)).items())
    phases = [phase for phase, _ in itertools.groupby(item.phase for item in items)]
    assert phases == [Phase.TRAIN, Phase.TEST, Phase.TRAIN, Phase.TEST]
    assert [item.rows for item in items if item.phase is Phase.TRAIN] == [1000, 437, 1000]


@functools.cache
def by_oracle(stages):
    """The configurations of both precisions, with the weights of a plain loop."""
    configs = [
        make_config(*TINY, f"pipeline.stages={stages}", f"precision={precision}")
        for precision in ("fp32", "bf16")
    ]
    return configs, [oracle.train(config, stages) for config in configs]


@pytest.mark.parametrize(("stages", "processes"), WORLDS)
def test_weights_do_not_depend_on_the_number_of_processes(stages, processes):
    configs, expected = by_oracle(stages)
    assert len({*expected[0], *expected[1]}) == 2 * stages, "all stages differ from one another"
    if processes < stages:
        found = hash_all(configs, layout(stages, processes))
    else:
        runs = train_all(configs, layout(stages))
        found = [run.hashes for run in runs]
        for run in runs:
            assert {line.step for line in run.lines if line.kind == "test"} == {2, 3}
    for one, other in zip(found, expected, strict=True):
        assert_same_weights(one, other)


VARIANTS = {
    "base": "",
    "adam": "optimizer=adam schedule.warmup_steps=2",
    "adamw_step": "optimizer=adamw optimizer.clip=0.1 schedule=step schedule.every=1",
    "constant": "schedule=constant optimizer.nesterov=true",
    "recipe": "schedule=triangle optimizer.nesterov=true optimizer.decoupled=true "
    "optimizer.norm_bias_lr_factor=4.0 optimizer.lookahead=2",
    "multistep": "schedule=multistep schedule.milestones=[1]",
    "heads": "label_smoothing=0.1 per_stage=[{head:cnn},{head:linear},{}]",
    "optimizers": "per_stage=[{},{optimizer:{name:adam,lr:0.001}},{schedule:constant}]",
    "precisions": "pipeline.split=[1,2] per_stage=[{},{precision:bf16},{}]",
    "epoch": "max_steps=2",
    "left_out_row": "batch_size=718",
    "depth_1": "pipeline.depth=1 evaluate.batch_size=359",
    "depth_3": "pipeline.depth=3 evaluate.every=0 log_every=1",
}
CHANGE_NOTHING = ("depth_1", "depth_3")
KNOWN_TO_ORACLE = ("constant", "heads", "precisions")


@pytest.fixture(scope="module")
def variants():
    """Every variant of a run of 3 stages, in one process and in three."""
    texts = VARIANTS.values()
    base = (*TINY, "pipeline.stages=3", "head=mlp")
    configs = [make_config(*base, *text.split()) for text in texts]
    plain, pipeline = (hash_all(configs, layout(3, processes)) for processes in (1, 3))
    return dict(zip(VARIANTS, zip(configs, plain, pipeline, strict=True), strict=True))


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_do_not_depend_on_the_number_of_processes_with(name, variants):
    config, plain, pipeline = variants[name]
    assert_same_weights(pipeline, plain)
    base = variants["base"][1]
    if name in CHANGE_NOTHING:
        assert_same_weights(plain, base)
    elif name != "base":
        assert plain != base, "the setting had no effect, so nothing was tested"
    if name in KNOWN_TO_ORACLE:
        assert_same_weights(plain, oracle.train(config, 3))


@pytest.mark.slow
def test_boundaries_of_other_types_and_shapes():
    """Sums in fp32 sent as bf16, maps of one channel, maps of one pixel."""
    network = (
        "model=custom",
        "model.target=harness.plug_ins:residual_network",
        "pipeline.stages=7",
    )
    config = make_config(*network, "precision=bf16", "batch_size=1000")
    fields = build_stages(config, open_data(config.data, config.seed).info, 7).spec.fields
    assert [field.shape for field in fields] == [
        (4, 8, 8),
        (4, 8, 8),
        (1, 4, 4),
        (4, 4, 4),
        (4, 4, 4),
        (4, 1, 1),
    ]
    assert {field.dtype for field in fields} == {torch.bfloat16}
    expected = oracle.train(config, 7)
    for processes in (1, 7):
        (hashes,) = hash_all([config], layout(7, processes))
        assert_same_weights(hashes, expected)


@pytest.mark.parametrize("changed", [1, in_test_all(2)])
def test_a_stage_never_changes_the_stages_below(changed):
    own = ["{}", "{}", "{}"]
    own[changed] = "{optimizer:{lr:0.01}}"
    settings = (*TINY, "pipeline.stages=3")
    configs = [make_config(*settings), make_config(*settings, f"per_stage=[{','.join(own)}]")]
    base, other = hash_all(configs, layout(3))
    assert_same_weights(other[:changed], base[:changed])
    for j in range(changed, 3):
        assert other[j] != base[j]


def drawn(stages, *overrides):
    config = make_config(f"pipeline.stages={stages}", *overrides)
    return build_stages(config, open_data(config.data, config.seed).info, stages)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_networks_of_torchvision_at_their_automatic_cut(name):
    work = ("data=synthetic", "data.samples=32", "data.image_size=32", "max_steps=3")
    config = make_config("model=torchvision", *work, "batch_size=8", "pipeline.split=auto")
    config.model.name = name
    if name.startswith("vit"):
        config.model.args = {"image_size": 32}
    (one,), (three,) = (hash_all([config], layout(3, processes), 500) for processes in (1, 3))
    assert one == three
    assert len(set(one)) == 3


def test_initial_weights_of_the_network_do_not_depend_on_the_stages():
    networks = []
    for stages in (1, 2, 3, 6):
        modules = drawn(stages).modules
        networks.append(
            {key: part.state_dict()[key] for part in modules for key in part.state_dict()}
        )
    for network in networks[1:]:
        assert network.keys() == networks[0].keys()
        assert all(torch.equal(network[key], networks[0][key]) for key in network)
    other = drawn(2, "seed=1").modules[0].state_dict()
    assert any(not torch.equal(other[key], networks[0][key]) for key in other)


def test_initial_weights_of_a_head_depend_on_seed_and_boundary_alone():
    def head(stages, j, *overrides):
        return drawn(stages, *overrides).learner(j).head.state_dict()

    def equal(one, two):
        return all(one[key].equal(two[key]) for key in one)

    at_3 = head(2, 0)
    assert any("weight" in key for key in at_3)
    assert equal(at_3, head(6, 2))
    assert equal(at_3, head(3, 1, "pipeline.split=[1,3]"))
    assert not equal(at_3, head(2, 0, "seed=1"))
    # The features after layers 3 and 4 have the same shape, so only the boundary differs.
    four, five = head(6, 3), head(6, 4)
    assert four["1.weight"].shape == five["1.weight"].shape
    assert not equal(four, five)


def test_a_seed_gives_the_same_run_and_another_seed_another():
    configs = [make_config(*TINY), make_config(*TINY), make_config(*TINY, "seed=1")]
    base, again, other = hash_all(configs, layout(2))
    assert_same_weights(again, base)
    assert all(one != two for one, two in zip(base, other, strict=True))
