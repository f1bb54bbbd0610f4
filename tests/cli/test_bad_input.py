"""Every error in the user's input ends with status 2, one message, and no run directory."""

from __future__ import annotations

import fcntl
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

import dglpipe.runtime.run
from dglpipe.cli.main import run
from dglpipe.errors import ConfigError
from dglpipe.host import cores
from dglpipe.runtime.plan import make_plan, plan_layout
from harness.configs import make_config

PLUG_IN = """
import torch

class Digits:
    classes = 3

    def __init__(self, top):
        self.train = self.test = torch.rand(12, 1, 8, 8), torch.arange(12) % (top + 1)

def build(top=2):
    return Digits(top)

def text():
    return "no module"
"""


@dataclass
class Cli:
    """Runs `dglpipe` in this process, in an empty folder that must stay empty."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def refuse(self, *arguments: str, command: str = "train") -> str:
        """Runs a command that must fail; checks status and files, and returns the error message."""
        before = sorted(self.folder.rglob("*"))
        status = run([command, *arguments])
        out, err = self.capture.readouterr()
        assert status == 2, err
        assert err.startswith("dglpipe: "), err
        assert not out
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before, "the command left files"
        return err


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    def launch(*_):
        raise AssertionError("processes were started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dglpipe.runtime.run, "launch", launch)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Cli(tmp_path, capsys)


def write_images(split: Path, *classes: str, count: int = 2) -> None:
    for name in classes:
        (split / name).mkdir(parents=True)
        for index in range(count):
            image = torch.full((3, 8, 8), 20 * index, dtype=torch.uint8)
            write_png(image, str(split / name / f"{index}.png"))


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    write_images(root / "train", "cat", "dog")
    write_images(root / "test", "cat", "dog")
    return root


VALUES = [
    # argument, key in the message, value in the message, allowed values
    ("pipeline.stages=7", "pipeline.stages", "7", "1 to 6, the number of segments"),
    ("pipeline.processes=3", "pipeline.processes", "3", "1 to 2, the stages"),
    ("epochs=-1", "epochs", "-1", "a whole number from 1"),
    ("epochs=two", "epochs", "'two'", "a whole number"),
    ("epochs=2.5", "epochs", "2.5", "a whole number"),
    ("epochs=null", "epochs", "None", "a whole number"),
    ("max_steps=0", "max_steps", "0", "a whole number from 1"),
    ("batch_size=0", "batch_size", "0", "a whole number from 1"),
    ("batch_size=1", "batch_size", "1", "at least 2: batch norm"),
    ("batch_size=2000", "batch_size", "2000", "at most the 1437 training samples"),
    ("seed=-1", "seed", "-1", "a whole number from 0 to 4294967295"),
    ("log_every=0", "log_every", "0", "a whole number from 1"),
    ("label_smoothing=2", "label_smoothing", "2.0", "a number from 0 to 0.99"),
    ("timeout_s=0", "timeout_s", "0.0", "a number from 0.1 to 1000000"),
    ("deterministic=perhaps", "deterministic", "'perhaps'", "true or false"),
    ("resume=always", "resume", "'always'", "never, auto"),
    ("on_failure=ignore", "on_failure", "'ignore'", "stop, restart_stage"),
    *(
        (f"on_failure=restart_stage {words}", "on_failure", "'restart_stage'", allowed)
        for words, allowed in (
            ("method=dgl", "stop with method=dgl. Its stages wait for each other"),
            ("method=sequential", "stop with method=sequential"),
            ("method=dgl_async method.simulate=true", "stop with method.simulate=true"),
            ("method=dgl_async", "stop with checkpoint.every=0"),
        )
    ),
    ("evaluate.every=-1", "evaluate.every", "-1", "a whole number from 0"),
    ("evaluate.batch_size=0", "evaluate.batch_size", "0", "a whole number from 1"),
    ("probe.every=-1", "probe.every", "-1", "a whole number from 0"),
    ("probe.batch_size=0", "probe.batch_size", "0", "a whole number from 1"),
    *(
        (f"probe.every=5 {words}", key, got, allowed)
        for words, key, got, allowed in (
            ("probe.batch_size=361", "probe.batch_size", "361", "at most the 360 test samples"),
            ("method=dgl_async", "probe.every", "5", "0 with method=dgl_async"),
            (
                "method=backprop pipeline.stages=2",
                "probe.every",
                "5",
                "0 in a pipeline of backprop",
            ),
        )
    ),
    ("checkpoint.every=-1", "checkpoint.every", "-1", "a whole number from 0"),
    ("checkpoint.keep=0", "checkpoint.keep", "0", "a whole number from 1"),
    ("pipeline.stages=0", "pipeline.stages", "0", "a whole number from 1"),
    ("pipeline.replicas=0", "pipeline.replicas", "0", "a whole number from 1"),
    ("pipeline.threads=0", "pipeline.threads", "0", "a whole number from 1"),
    ("pipeline.depth=0", "pipeline.depth", "0", "a whole number from 1"),
    ("pipeline.backend=mpi", "pipeline.backend", "'mpi'", "auto, gloo, nccl"),
    ("pipeline.split=odd", "pipeline.split", "'odd'", "even"),
    ("pipeline.split=[9]", "pipeline.split", "[9]", "numbers from 1 to 5"),
    ("pipeline.split=[1,2]", "pipeline.split", "[1, 2]", "1 numbers for 2 stages"),
    ("model.width=0", "model.width", "0", "a whole number from 1"),
    ("model.dropout=1", "model.dropout", "1.0", "a number from 0 to 0.99"),
    ("model.widths=[4,8]", "model.widths", "[4, 8]", "6 whole numbers from 1"),
    ("model.pools=[3,1]", "model.pools", "[3, 1]", "increasing whole numbers from 1 to 5"),
    ("data.image_size=0", "data.image_size", "0", "a whole number from 1"),
    ("optimizer.lr=0", "optimizer.lr", "0.0", "a number above 0"),
    ("optimizer.lr=fast", "optimizer.lr", "'fast'", "a number"),
    ("optimizer.momentum=2", "optimizer.momentum", "2.0", "a number from 0 to 1"),
    ("optimizer.momentum=0 optimizer.nesterov=true", "optimizer.nesterov", "True", "false"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay", "-1.0", "a number from 0"),
    ("optimizer.clip=0", "optimizer.clip", "0.0", "a number above 0"),
    ("head.reads=input", "head.reads", "'input'", "before_pool, output"),
    ("head=cnn_sr head.side=0", "head.side", "0", "a whole number from 1"),
    ("head=cnn_sr head.depth=0", "head.depth", "0", "a whole number from 1 to 100"),
    ("head=cnn_sr head.width=0", "head.width", "0", "a whole number from 1"),
    (
        "head=custom head.target=harness.plug_ins:head_of_pooled_maps pipeline.split=[1]",
        *("head", "'Sequential'", "one that works on features (32, 8, 8)"),
    ),
    ("method=dni method.delay=-1", "method.delay", "-1", "a whole number from 0"),
    ("method=dni max_steps=3 method.delay=3", "method.delay", "3", "less than 3, the steps"),
    ("method=ddg max_steps=1", "pipeline.stages", "2", "at most 1, the steps of the run"),
    ("method=dni method.context=label", "method.context", "'label'", "none, labels"),
    ("method=dni method.kernel=4", "method.kernel", "4", "an odd number from 1 to 99"),
    *(
        (f"method={name} {words}", key, got, f"with method={name}")
        for name in ("dni", "ddg", "features_replay")
        for words, key, got in (
            ("precision=fp16", "precision", "'fp16'"),
            ("pipeline.replicas=2", "pipeline.replicas", "2"),
        )
    ),
    ("schedule.warmup_steps=-1", "schedule.warmup_steps", "-1", "a whole number from 0"),
    ("method.loss=hinge", "method.loss", "'hinge'", "cross_entropy"),
    ("per_stage=3", "per_stage", "3", "a list"),
    ("per_stage=[{}]", "per_stage", "'1 entries'", "a list of 2 entries, one per stage"),
    ("per_stage=[{}] pipeline.cost=time", "per_stage", "'1 entries'", "one per stage"),
    (
        "method=backprop method.schedule=1f1b pipeline.stages=2 per_stage=[{}]",
        *("per_stage", "'1 entries'", "one per stage"),
    ),
    ("per_stage=[{},{optimizer:{lr:0}}]", "per_stage[1].optimizer.lr", "0.0", "above 0"),
    ("per_stage=[{},{head:foo}]", "per_stage[1].head.name", "'foo'", "mlp_sr"),
    ("per_stage=[{},{batch_size:4}]", "per_stage[1].batch_size", "4", "head, local, optimizer"),
]


@pytest.mark.parametrize(("override", "key", "got", "allowed"), VALUES)
def test_value_out_of_range_or_of_the_wrong_type(override, key, got, allowed):
    with pytest.raises(ConfigError) as caught:
        config = make_config("model.width=32", "batch_size=128", *override.split())
        make_plan(config, plan_layout(config.pipeline, config.method, cores()))
    message = str(caught.value)
    assert f"{key}: got {got}; allowed: " in message
    assert allowed in message.partition("allowed: ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("override", "key", "got", "allowed"), VALUES)
def test_value_is_refused_by_the_command(cli, override, key, got, allowed):
    message = cli.refuse(*override.split(), "run_dir=run")
    assert f"{key}: got {got}; allowed: " in message
    assert allowed in message.partition("allowed: ")[2]


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("model=resnet19", "model", "resnet18"),
        ("head=mlp_rs", "head", "mlp_sr"),
        ("data=cifra10", "data", "cifar10"),
        ("optimizer=sdg", "optimizer", "sgd"),
        ("schedule=cosin", "schedule", "cosine"),
        ("precision=bf61", "precision", "bf16"),
    ],
)
def test_unknown_choice_of_a_group(cli, override, key, meant):
    message = cli.refuse(override, "run_dir=run")
    got = override.partition("=")[2]
    assert f"{key}: got '{got}'; allowed: " in message
    assert f"Did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pipeline.stage=2", "pipeline.stage: no such key; did you mean pipeline.stages?"),
        ("pipline.stages=2", "pipline.stages: no such key; did you mean pipeline.stages?"),
        ("batchsize=2", "batchsize: no such key; did you mean batch_size?"),
        ("data.samples=9", "data.samples: no such key; it belongs to data=synthetic"),
        ("schedule.every=2", "schedule.every: no such key; it belongs to schedule=step"),
        (
            "method=dni method.simulate=true",
            "method.simulate: no such key; it belongs to method=dgl_async",
        ),
        ("pipeline.xyz=2", "pipeline.xyz: no such key; allowed: pipeline.backend, pipeline."),
        ("+model.widht=2", "model.widht: got 2; allowed: the keys dropout, family"),
        ("+model.widht=2", "did you mean width?"),
        ("max_steps=[", "max_steps=[: is not of the form key=value"),
        ("max_steps", "max_steps: is not of the form key=value"),
    ],
)
def test_unknown_key(cli, override, expected):
    assert expected in cli.refuse(*override.split(), "run_dir=run")


def test_missing_value(cli):
    assert "data.root: required: give data.root=DIR" in cli.refuse("data=image_folder")


@pytest.mark.parametrize("group", ["model", "head", "data"])
def test_plug_in_without_a_target(cli, group):
    required = f"{group}.target: required: give {group}.target=package.module:builder"
    assert required in cli.refuse(f"{group}=custom")
    assert f"{group}.target: got ''; allowed: " in cli.refuse(f"{group}=custom", f"{group}.target=")


def test_config_folder_that_is_not_there(cli):
    assert "--config-dir: " in cli.refuse("--config-dir=nowhere", "run_dir=run")


def folder(images: Path) -> list[str]:
    return ["data=image_folder", f"data.root={images}", "batch_size=2", "run_dir=run"]


def test_image_folder_that_is_missing(cli, tmp_path):
    message = cli.refuse(*folder(tmp_path / "nowhere"))
    assert f"data.root={tmp_path / 'nowhere'}: there is no folder" in message


def test_image_folder_that_is_empty(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    message = cli.refuse(*folder(tmp_path / "empty"))
    assert "has no train/; found no folders" in message
    assert "expected train/<class>/" in message


def test_class_without_images(cli, images):
    (images / "train" / "cow").mkdir()
    (images / "test" / "cow").mkdir()
    message = cli.refuse(*folder(images))
    assert f"class {images / 'train' / 'cow'} has no images" in message


def test_classes_that_differ(cli, images):
    write_images(images / "test", "cow")
    message = cli.refuse(*folder(images))
    assert "test/ has classes that are not in train/: cow" in message


@pytest.mark.parametrize("where", ["train/dog/1.png", "test/dog/1.png"])
@pytest.mark.parametrize("transform", ["cifar", "imagenet"])
def test_image_that_is_cut_off(cli, images, where, transform):
    (images / where).write_bytes((images / where).read_bytes()[:-20])
    message = cli.refuse(*folder(images), f"data.transform={transform}")
    assert f"{images / where}: cannot be decoded as an image" in message


def test_file_that_is_no_image(cli, images):
    (images / "train" / "dog" / "1.png").write_text("no picture at all")
    message = cli.refuse(*folder(images))
    assert (
        f"{images / 'train' / 'dog' / '1.png'}: is not a JPEG, PNG, GIF or WebP image (begins with"
        in message
    )


def test_cifar10_that_is_not_there(cli, tmp_path):
    message = cli.refuse("data=cifar10", f"data.root={tmp_path}", "run_dir=run")
    assert f"data.root={tmp_path}: contains no CIFAR-10" in message
    assert "data.download=true" in message


@pytest.fixture
def under_torchrun(monkeypatch):
    def world(size: int, rank: int = 0) -> None:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
        for key, value in values.items():
            monkeypatch.setenv(key, str(value))
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")

    return world


def test_world_size_that_the_replicas_do_not_divide(cli, under_torchrun):
    under_torchrun(3)
    message = cli.refuse("pipeline.replicas=2", "run_dir=run")
    assert "pipeline.replicas: got 2; allowed: a divisor of the world size, 3" in message


def test_world_size_that_is_not_processes_times_replicas(cli, under_torchrun):
    under_torchrun(4)
    message = cli.refuse("pipeline.processes=3", "pipeline.stages=4", "run_dir=run")
    assert "pipeline.processes: got 3; allowed: world size 4 / replicas 1 = 4" in message
    assert "Start 3 processes" in message


def test_world_of_more_processes_than_segments(cli, under_torchrun):
    under_torchrun(7)
    assert "pipeline.stages: got 7; allowed: 1 to 6" in cli.refuse("run_dir=run")


def test_other_ranks_print_the_same_error_later(cli, under_torchrun, monkeypatch):
    pauses = []
    monkeypatch.setattr("dglpipe.cli.train.time.sleep", pauses.append)
    under_torchrun(3, rank=1)
    assert "pipeline.replicas: got 2" in cli.refuse("pipeline.replicas=2", "run_dir=run")
    assert pauses == [2.0]


def test_sweep_under_torchrun(cli, under_torchrun):
    under_torchrun(2)
    assert "-m under torchrun" in cli.refuse("-m", "pipeline.stages=1,2", "run_dir=run")


def test_sweep_with_a_mistake_starts_nothing(cli):
    assert "model: got 'cnn5'" in cli.refuse("-m", "model=cnn5,cnn6", "run_dir=run")
    assert "epochs: got 0" in cli.refuse("-m", "epochs=0,1", "run_dir=run")


@pytest.fixture
def plug_in(tmp_path):
    """A module in the working directory, with a unique name."""
    name = f"plug_in_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(PLUG_IN)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere_at_all:build", "There is no module 'nowhere_at_all'"),
        ("{plug_in}:buidl", "similar names: build"),
        ("just_a_word", "package.module:builder"),
    ],
)
@pytest.mark.parametrize("group", ["model", "head", "data"])
def test_plug_in_that_cannot_be_imported(cli, plug_in, group, target, reason):
    target = target.format(plug_in=plug_in)
    message = cli.refuse(f"{group}=custom", f"{group}.target={target}", "run_dir=run")
    assert f"{group}.target: got '{target}'; allowed: package.module:builder" in message
    assert reason in message


def test_loss_that_cannot_be_imported(cli):
    message = cli.refuse("method.loss={target:nowhere_at_all.build}", "run_dir=run")
    assert "method.loss.target: got 'nowhere_at_all.build'" in message


def test_plug_in_whose_module_fails(cli, tmp_path):
    (tmp_path / "failing_plug_in.py").write_text("import a_module_that_is_not_there\n")
    message = cli.refuse("model=custom", "model.target=failing_plug_in:build", "run_dir=run")
    assert "'failing_plug_in' exists, but its import fails" in message
    assert "module 'a_module_that_is_not_there' is not installed" in message


@pytest.mark.parametrize("group", ["model", "head"])
def test_plug_in_that_gives_something_else(cli, plug_in, group):
    message = cli.refuse(f"{group}=custom", f"{group}.target={plug_in}:text", "run_dir=run")
    assert f"{group}.target: got '{plug_in}:text'; allowed: a builder of a torch.nn.Mod" in message


def test_plug_in_with_the_wrong_arguments(cli, plug_in):
    data = ["data=custom", f"data.target={plug_in}:build", "+data.args.bottom=1"]
    message = cli.refuse(*data, "run_dir=run")
    assert "data.args: got {'bottom': 1}; allowed: arguments of" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_nccl_without_cuda(cli):
    message = cli.refuse("pipeline.backend=nccl", "run_dir=run")
    assert "pipeline.backend: got 'nccl'; allowed: gloo" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("precision=fp16", "dglpipe: precision"),
        ("per_stage=[{},{precision:fp16}]", "dglpipe: per_stage[1].precision"),
    ],
)
def test_fp16_without_cuda(cli, where, key):
    message = cli.refuse(where, "run_dir=run")
    assert f"{key}: got 'fp16'; allowed: fp32, bf16" in message


def test_a_timeline_is_true_or_false(cli):
    assert "timeline: got 'maybe'; allowed: true or false" in cli.refuse("timeline=maybe")


@pytest.mark.parametrize(
    "words", [("-r",), ("--run",), ("--cfg", "job", "model=foo"), ("--cfg", "job", "epochs=-1")]
)
def test_flags_of_hydra(cli, words):
    """Other errors are reported as usual."""
    message = cli.refuse(*words, "run_dir=a=b")
    assert "allowed" in message


def test_images_that_are_not_square(cli, tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "wide" / name).mkdir(parents=True)
        for number in range(2):
            picture = torch.zeros(3, 8, 12, dtype=torch.uint8)
            write_png(picture, str(tmp_path / "wide" / name / f"{number}.png"))
    root = f"data.root={tmp_path / 'wide'}"
    cli.folder.mkdir(exist_ok=True)
    message = cli.refuse("data=image_folder", root, "batch_size=2")
    assert "data.image_size: got 'images of 8x12'" in message
    assert "data.image_size=SIDE makes them square" in message


def test_images_too_small_for_the_network(cli):
    message = cli.refuse("model=vgg19_bn", "run_dir=run")
    assert "data.image_size: got 8; allowed: images that segment 11 (features.36)" in message
    assert "rows of shape (512, 1, 1)" in message


def test_network_for_colour_and_images_with_two_channels(cli):
    message = cli.refuse("model=resnet18", "data=synthetic", "data.channels=2", "run_dir=run")
    assert "the images have 2 channels, the network requires 3" in message


def make_run(path: Path, status: str | None) -> None:
    path.mkdir()
    (path / "config.yaml").write_text("{}\n")
    if status is not None:
        (path / "summary.json").write_text(f'{{"status": "{status}"}}')


def test_run_directory_that_holds_a_finished_run(cli, tmp_path):
    make_run(tmp_path / "run", "finished")
    assert "run_dir: run holds a finished run" in cli.refuse("run_dir=run")


def test_finished_run_whose_configuration_cannot_be_read(cli, tmp_path):
    make_run(tmp_path / "run", "finished")
    message = cli.refuse("run_dir=run", "resume=auto")
    assert "run_dir: run/config.yaml is not the configuration of a run" in message


@pytest.mark.parametrize("status", ["failed", "interrupted", None])
def test_run_directory_that_holds_an_unfinished_run(cli, tmp_path, status):
    make_run(tmp_path / "run", status)
    message = cli.refuse("run_dir=run")
    assert "run_dir: run holds an unfinished run" in message
    assert "resume=auto" in message


def test_run_directory_in_use(cli, tmp_path):
    make_run(tmp_path / "run", None)
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "run_dir: run is in use" in cli.refuse("run_dir=run", "resume=auto")


def test_directory_of_something_else(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    assert "run_dir: run holds thesis.tex but no run" in cli.refuse("run_dir=run")


def test_run_directory_that_is_a_file(cli, tmp_path):
    (tmp_path / "run").write_text("")
    assert "run_dir: run is a file" in cli.refuse("run_dir=run")


def test_run_directory_that_cannot_be_made(cli, tmp_path):
    (tmp_path / "file").write_text("")
    assert "run_dir: file/run cannot be written to" in cli.refuse("run_dir=file/run")


@pytest.mark.parametrize("arguments", [[], ["run="], ["run=a", "run=b"], ["runs=a"]])
def test_evaluate_without_a_run(cli, arguments):
    assert "allowed: run=RUN_DIR" in cli.refuse(*arguments, command="evaluate")


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_evaluate_of_a_directory_that_is_no_run(cli, path):
    message = cli.refuse(f"run={path}", command="evaluate")
    assert f"run: {path} holds no run; give the directory of a finished run" in message


def test_evaluate_of_a_run_that_failed(cli, tmp_path):
    make_run(tmp_path / "run", "failed")
    message = cli.refuse("run=run", command="evaluate")
    assert "run: run holds a run that is failed; give the directory of a finished run" in message


def test_models_takes_no_arguments(cli):
    assert "models: got 'cnn6'" in cli.refuse("cnn6", command="models")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["method=gpipe"], "method"),
        (
            ["method=backprop", "method.schedule=2f2b"],
            "method.schedule: got '2f2b'; allowed: gpipe",
        ),
        (["method=dgl", "method.microbatches=4"], "method.microbatches"),
        (
            ["method=backprop", "pipeline.stages=2", "method.microbatches=3"],
            "method.microbatches: got 3; allowed: a number that divides batch_size=128",
        ),
        (
            ["method=backprop", "pipeline.stages=4", "method.microbatches=2"],
            "method.microbatches: got 2; allowed: 4 or more, the stages, for method.schedule=1f1b",
        ),
        (
            ["method=backprop", "method.schedule=interleaved_1f1b", "pipeline.stages=6"],
            "method.microbatches: got 4; allowed: a multiple of 3, the processes",
        ),
        (
            ["method=backprop", "pipeline.stages=2", "precision=fp16"],
            "precision: got 'fp16'; allowed: fp32 or bf16 in a pipeline of backprop",
        ),
        (
            ["method=backprop", "pipeline.stages=2", "pipeline.replicas=2"],
            "pipeline.replicas: got 2; allowed: 1 for a pipeline",
        ),
    ],
)
def test_methods_that_cannot_be(cli, words, text):
    assert text in cli.refuse(*words)
