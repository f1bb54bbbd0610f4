import copy
import functools
import subprocess
import sys

import pytest

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.config import (
    AdamConfig,
    CustomMethodConfig,
    CustomModelConfig,
    PluginConfig,
    from_yaml,
    parse,
    to_tree,
    to_yaml,
)
from dglpipe.errors import ConfigError, UserError


def config(*words):
    return copy.deepcopy(composed(words))


@functools.cache
def composed(words):
    """Composing takes tenths of a second."""
    return compose(parse_arguments(words))


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("model=resnet18", "optimizer=adamw", "precision=bf16", "data=synthetic"),
        ("pipeline.split=[1,3]", "pipeline.stages=3", "schedule=multistep"),
        ("per_stage=[{optimizer:{lr:0.01}},{head:linear}]",),
        ("model=custom", "model.target=a.b:C", "model.args={width: 3}"),
        ("method.loss={target: a.b:C}",),
    ],
)
def test_a_configuration_survives_its_file(words):
    one = config(*words)
    assert from_yaml(to_yaml(one)) == one
    assert parse(to_tree(one)) == one


def test_a_stage_can_differ():
    one = config(
        "per_stage=[{optimizer:{lr:0.01}},{optimizer:adam,head:linear,precision:bf16},{}]",
        "optimizer.momentum=0.8",
    )
    assert one.stage(0).optimizer.lr == 0.01
    assert one.stage(0).optimizer.momentum == 0.8
    assert one.stage(1).optimizer == AdamConfig(name="adam")
    assert one.stage(1).head.name == "linear"
    assert one.stage(1).precision.name == "bf16"
    assert one.stage(2).optimizer == one.optimizer


def test_plug_ins_have_two_forms():
    one = config("model=custom", "model.target=a.b:C", "+model.args.width=3")
    assert one.model == CustomModelConfig(target="a.b:C", args={"width": 3})
    hydra = {"_target_": "a.b.C", "width": 3, "reset_optimizer": True}
    own = parse({**to_tree(config()), "method": hydra}).method
    assert own == CustomMethodConfig(target="a.b.C", args={"width": 3}, reset_optimizer=True)
    other = config("+method.loss={_target_: a.b.C, margin: 1}".replace("+", ""))
    assert other.method.loss == PluginConfig(target="a.b.C", args={"margin": 1})


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("epochs=0", "epochs"),
        ("max_steps=0", "max_steps"),
        ("batch_size=0", "batch_size"),
        ("seed=-1", "seed"),
        ("log_every=0", "log_every"),
        ("label_smoothing=1.5", "label_smoothing"),
        ("timeout_s=0", "timeout_s"),
        ("resume=always", "resume"),
        ("batch_size=many", "batch_size"),
        ("deterministic=7.5", "deterministic"),
        ("model.width=0", "model.width"),
        ("model.dropout=1", "model.dropout"),
        ("model.widths=[1,2]", "model.widths"),
        ("model.pools=[3,1]", "model.pools"),
        ("model.hidden_layers=0", "model.hidden_layers"),
        ("model.hidden_layers=101", "model.hidden_layers"),
        ("head.init=normal", "head.init"),
        ("method.reset_optimizer=often", "method.reset_optimizer"),
        ("optimizer.lr=0", "optimizer.lr"),
        ("optimizer.lr=.inf", "optimizer.lr"),
        ("optimizer.momentum=2", "optimizer.momentum"),
        ("optimizer.clip=0", "optimizer.clip"),
        ("+schedule.every=0", "schedule.every"),
        ("schedule.final=2", "schedule.final"),
        ("schedule.warmup_steps=-1", "schedule.warmup_steps"),
        ("pipeline.depth=0", "pipeline.depth"),
        ("pipeline.stages=0", "pipeline.stages"),
        ("pipeline.split=odd", "pipeline.split"),
        ("pipeline.split=[a]", "pipeline.split"),
        ("pipeline.backend=mpi", "pipeline.backend"),
        ("evaluate.every=-1", "evaluate.every"),
        ("checkpoint.every=-1", "checkpoint.every"),
        ("checkpoint.keep=0", "checkpoint.keep"),
        ("method.loss=hinge", "method.loss"),
        ("per_stage=[{width:1}]", "per_stage[0].width"),
        ("per_stage=[{optimizer:{lr:-1}}]", "per_stage[0].optimizer.lr"),
        ("per_stage=[7]", "per_stage[0]"),
    ],
)
def test_an_impossible_value_is_named(word, key):
    with pytest.raises(ConfigError) as caught:
        config(word)
    assert caught.value.key == key
    assert "allowed:" in str(caught.value)


@pytest.mark.parametrize("word", ["epoch=1", "optimizer.learning_rate=1", "model=cnn7", "a"])
def test_an_unknown_key_or_name_is_named(word):
    with pytest.raises(UserError, match=word.split("=", maxsplit=1)[0].rsplit(".", 1)[-1]):
        config(word)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segments", float("nan")),
        ("segments", float("inf")),
        ("segments", -1.0),
        ("input_gradients", True),
        ("input_gradients", "1"),
        ("heads", float("nan")),
        ("heads", -float("inf")),
        ("heads", None),
    ],
)
def test_times_are_seconds(name, value):
    tree = to_tree(config())
    times = {"segments": [1.0, 0], "input_gradients": [0.0, 0.5], "heads": [float("inf")]}
    tree["pipeline"]["times"] = times
    assert parse(tree).pipeline.times == times
    assert from_yaml(to_yaml(parse(tree))).pipeline.times == times
    wrong = {**times, name: [value, *times[name][1:]]}
    tree["pipeline"]["times"] = wrong
    with pytest.raises(ConfigError, match="seconds from 0") as caught:
        parse(tree)
    assert caught.value.key == f"pipeline.times.{name}[0]"
    tree["pipeline"]["times"] = [times, times]
    assert from_yaml(to_yaml(parse(tree))).pipeline.times == [times, times]
    tree["pipeline"]["times"] = [times, wrong]
    with pytest.raises(ConfigError, match="seconds from 0") as caught:
        parse(tree)
    assert caught.value.key == f"pipeline.times[1].{name}[0]"


@pytest.mark.parametrize(
    ("times", "key"),
    [
        (3, "pipeline.times"),
        ([3], "pipeline.times[0]"),
        ({"segments": [1.0]}, "pipeline.times"),
        ([{"segments": 1.0}], "pipeline.times[0]"),
    ],
)
def test_times_have_three_lists(times, key):
    tree = to_tree(config())
    tree["pipeline"]["times"] = times
    with pytest.raises(
        ConfigError, match="lists of seconds under heads, input_gradients"
    ) as caught:
        parse(tree)
    assert caught.value.key == key


def test_a_run_dir_may_have_any_name():
    assert config("run_dir=/tmp/a=b (c) @~,x").run_dir == "/tmp/a=b (c) @~,x"


def test_a_missing_key_is_named():
    tree = to_tree(config())
    del tree["epochs"]
    with pytest.raises(ConfigError, match=r"^epochs: required: give epochs=VALUE$"):
        parse(tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{a: [1,", "got 'malformed YAML'; allowed: YAML"), ("[1]", r"got \[1\]; allowed: a mapping")],
)
def test_a_file_that_is_no_configuration(text, message):
    with pytest.raises(ConfigError, match=f"^config.yaml: {message}"):
        from_yaml(text)


def test_the_schema_loads_no_torch():
    code = (
        "import sys, dglpipe.config, dglpipe.config.instantiate; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
