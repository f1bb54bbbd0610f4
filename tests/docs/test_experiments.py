"""Every file of conf/experiment begins with a command that is accepted, has the learning rates of
the authors' script, and trains."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import pytest
import torch
from torchvision.io import write_png

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.pipeline.lr_schedule import rate_factor
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan, plan_layout
from harness.configs import build_stages, in_test_all
from harness.paths import ROOT
from harness.training import train_world

FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
SEGMENTS = {
    "async_buffer": [1, 1, 1, 1, 1, 1],
    "async_buffer_digits": [1, 1, 1, 1],
    "async_slowdown": [1, 1, 1, 1, 1, 1],
    "async_slowdown_digits": [1, 1, 1, 1],
    "cifar10_cnn4": [1, 1, 1, 1],
    "cifar10_cnn6": [1, 1, 1, 1, 1, 1],
    "cifar10_dni": [1, 1, 1],
    "cifar10_dni_backprop": [3],
    "cifar10_dni_dgl": [1, 1, 1],
    "cifar10_fastcnn": [4, 3],
    "cifar10_resnet110": [27, 28],
    "cifar10_resnet110_backprop": [55],
    "debug": [3, 3],
    "imagenet_resnet152": [26, 25],
    "imagenet_resnet152_backprop": [51],
    "imagenet_vgg13": [3, 3, 3, 1],
    "imagenet_vgg13_backprop": [10],
    "imagenet_vgg13_k10": [1] * 10,
    "imagenet_vgg19": [8, 8],
    "imagenet_vgg19_backprop": [16],
    "imagenet_vgg19_k4": [4, 4, 4, 4],
}
"""Segments of every stage. With the stem, ResNet-152 has 51 and ResNet-110 has 55."""


VARIANTS = ("cifar10_dni_backprop", "cifar10_dni_dgl", "cifar10_resnet110_backprop")
VARIANTS += ("imagenet_resnet152_backprop", "imagenet_vgg13_backprop", "imagenet_vgg13_k10")
VARIANTS += ("imagenet_vgg19_backprop", "imagenet_vgg19_k4", "async_buffer", "async_buffer_digits")
"""They differ from others in a few settings."""

UNKNOWN = {"cifar10_fastcnn": ("~data.flip", "~data.crop_padding", "~data.crop_border")}
"""Overrides without the keys that synthetic images do not have."""


@pytest.fixture
def images(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(160):
            image = torch.full((3, 32, 32), number, dtype=torch.uint8)
            write_png(image, str(tmp_path / name / f"{number}.png"), compression_level=0)
    return tmp_path


def test_all_files_are_here():
    assert [file.stem for file in FILES] == sorted(SEGMENTS)


@pytest.mark.parametrize(
    "file",
    [in_test_all(file) if file.stem in VARIANTS else file for file in FILES],
    ids=lambda path: path.stem,
)
def test_command_would_start(file, images):
    _, line, purpose = file.read_text().splitlines()[:3]
    words = shlex.split(line.lstrip("# "))
    assert words[:3] == ["dglpipe", "train", f"experiment={file.stem}"]
    assert purpose.startswith("# ")
    small = [word.replace("DIR", str(images)) for word in words[2:]]
    if "data.root=DIR" in line and not file.stem.startswith(
        "imagenet"
    ):  # the files of CIFAR-10 are nowhere near
        small = [word for word in small if not word.startswith("data.root")]
        small += ["data=synthetic", "data.samples=2048", *UNKNOWN.get(file.stem, ())]
    if file.stem.startswith("imagenet"):  # no CUDA devices either, and less memory
        small += ["precision=fp32", "batch_size=32"]
    config = compose(parse_arguments(small))
    layout = plan_layout(config.pipeline, config.method, cores=64)
    plan = make_plan(config, layout)
    assert [len(names) for names in plan.spec.segments] == SEGMENTS[file.stem]


def test_heads_of_the_study_read_maps_of_the_sides_that_the_papers_heads_read():
    config = compose(parse_arguments(["experiment=cifar10_cnn6", "data=synthetic"]))
    source = open_images(config)
    spec = build_stages(config, source.info, 6, meta=True).spec
    assert [spec.read_row(j)[1] for j in range(5)] == [32, 16, 16, 8, 8]


CIFAR_CNN = [(15, 0.1), (15, 0.02), (15, 0.004), (5, 0.0008)]
ASYNC = [(17, 0.1), (15, 0.02), (15, 0.004), (4, 0.0008)]
RESNET_110 = [(149, 0.01), (75, 0.001), (76, 0.0001)]
DGL_IMAGENET = [(10, 0.1), (10, 0.01), (10, 1e-3), (10, 1e-4), (10, 1e-5)]
BACKPROP_IMAGENET = [(9, 0.1), (10, 0.01), (10, 1e-3), (10, 1e-4), (10, 1e-5), (1, 1e-6)]
DNI = ("cifar10_dni", "cifar10_dni_backprop", "cifar10_dni_dgl")
RATES = {
    "async_buffer": ASYNC,
    "async_slowdown": ASYNC,
    "cifar10_cnn4": CIFAR_CNN,
    "cifar10_cnn6": CIFAR_CNN,
    "cifar10_dni": [(2000, 3e-5)],
    "cifar10_dni_backprop": [(2000, 3e-5)],
    "cifar10_dni_dgl": [(1500, 3e-5)],
    "cifar10_resnet110": RESNET_110,
    "cifar10_resnet110_backprop": RESNET_110,
    "imagenet_resnet152": DGL_IMAGENET,
    "imagenet_resnet152_backprop": BACKPROP_IMAGENET,
    "imagenet_vgg13": DGL_IMAGENET,
    "imagenet_vgg13_backprop": BACKPROP_IMAGENET,
    "imagenet_vgg13_k10": DGL_IMAGENET,
    "imagenet_vgg19": DGL_IMAGENET,
    "imagenet_vgg19_backprop": BACKPROP_IMAGENET,
    "imagenet_vgg19_k4": DGL_IMAGENET,
}
"""(Epochs, learning rate) of the authors' scripts, in order."""
KEEP_MOMENTUM = ("cifar10_cnn4", "cifar10_cnn6", *DNI)
"""Their scripts change the rate of one optimizer; the others build a new optimizer at each drop."""


def composed(name, *overrides):
    root = [] if name.startswith(("async_buffer_", "async_slowdown_", "debug")) else ["data.root=x"]
    return compose(parse_arguments([f"experiment={name}", *root, *overrides]))


def test_every_experiment_of_the_paper_has_a_table_of_rates():
    own = {"debug", "async_buffer_digits", "async_slowdown_digits", "cifar10_fastcnn"}
    assert RATES.keys() == SEGMENTS.keys() - own


@pytest.mark.parametrize("name", RATES)
def test_learning_rates_are_those_of_the_authors(name):
    """Of the first and the last step of every epoch."""
    config, per_epoch = composed(name), 391
    steps = config.epochs * per_epoch
    found = [
        config.optimizer.lr * rate_factor(config.schedule, step, steps, per_epoch)
        for epoch in range(config.epochs)
        for step in (epoch * per_epoch + 1, (epoch + 1) * per_epoch)
    ]
    expected = [rate for epochs, rate in RATES[name] for _ in range(2 * epochs)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert config.method.reset_optimizer == (name not in KEEP_MOMENTUM)


def test_networks_of_the_baselines_are_those_of_torchvision():
    for layers in (13, 19):
        assert composed(f"imagenet_vgg{layers}_backprop").model.dropout == 0.5
        assert composed(f"imagenet_vgg{layers}").model.dropout == 0
        assert composed(f"imagenet_vgg{layers}").head.init == "kaiming"


SMALL = ("batch_size=4", "max_steps=2", "log_every=1", "precision=fp32", "pipeline.threads=1")
SYNTHETIC = ("data=synthetic", "data.samples=8", "data.image_size=32")
IMAGENET = (*SYNTHETIC, "~data.transform")
DEEP = (*IMAGENET, "on_nonfinite=ignore")
"""After two steps the running statistics of 152 layers are far from the statistics of a batch, and
the test overflows."""
CNN = (*SYNTHETIC, "model.width=4")
NARROW = (*SYNTHETIC, "model.widths=[4,4,8,8,16,16]", "method.buffer=2")
RUNS = {
    "async_buffer": NARROW,
    "async_buffer_digits": (),
    "async_slowdown": NARROW,
    "async_slowdown_digits": (),
    "cifar10_cnn4": CNN,
    "cifar10_cnn4 sequential": (*CNN, "method=sequential"),
    "cifar10_cnn6": CNN,
    "cifar10_cnn6 mlp": (*CNN, "head=mlp"),
    "cifar10_cnn6 cnn": (*CNN, "head=cnn"),
    "cifar10_dni": CNN,
    "cifar10_dni cdni": (*CNN, "method.context=labels"),
    "cifar10_dni_backprop": CNN,
    "cifar10_dni_dgl": CNN,
    "cifar10_fastcnn": (*CNN, *UNKNOWN["cifar10_fastcnn"]),
    "cifar10_resnet110": SYNTHETIC,
    "cifar10_resnet110_backprop": SYNTHETIC,
    "debug": (),
    "imagenet_resnet152": DEEP,
    "imagenet_resnet152_backprop": DEEP,
    "imagenet_vgg13": IMAGENET,
    "imagenet_vgg13_backprop": IMAGENET,
    "imagenet_vgg13_k10": IMAGENET,
    "imagenet_vgg19": IMAGENET,
    "imagenet_vgg19_backprop": IMAGENET,
    "imagenet_vgg19_k4": IMAGENET,
}
"""Experiment, and a word for a variant -> settings of a small run."""
QUICK = ("cifar10_cnn4", "cifar10_cnn6")
"""The others repeat these, or have large networks."""


def test_every_experiment_is_run():
    assert {run.partition(" ")[0] for run in RUNS} == SEGMENTS.keys()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("run", [run if run in QUICK else in_test_all(run) for run in RUNS])
def test_trains_two_steps(run):
    """All stages in one process, on images of 32x32."""
    name = run.partition(" ")[0]
    words = [f"experiment={name}", *SMALL, *RUNS[run]]
    config = compose(parse_arguments(words))
    config.evaluate.batch_size = 8
    layout = replace(plan_layout(config.pipeline, config.method, cores=1), processes=1)
    trained = train_world(config, layout, deadline_s=300)
    stages = len(SEGMENTS[name])
    assert len(set(trained.hashes)) == stages
    losses = [line.loss for line in trained.lines if line.kind == "train" and line.loss is not None]
    # With dni, the stages below the last have the losses of their synthesisers.
    assert len(losses) == 2 * (1 if config.method.name == "backprop" else stages)
    assert all(math.isfinite(loss) for loss in losses)
    rates = {line.learning_rate for line in trained.lines if line.kind == "train"}
    assert rates == {config.optimizer.lr} or name in ("debug", "cifar10_fastcnn")  # not constant
