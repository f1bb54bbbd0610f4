"""Every file of conf/experiment begins with a command that is accepted."""

from __future__ import annotations

import shlex

import pytest
import torch
from torchvision.io import write_png

from dglpipe.cli.arguments import parse_arguments
from dglpipe.cli.compose import compose
from dglpipe.runtime.open_data import open_images
from dglpipe.runtime.plan import make_plan, plan_layout
from harness.configs import build_stages
from harness.paths import ROOT

FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
SEGMENTS = {
    "async_buffer": [1, 1, 1, 1, 1, 1],
    "async_buffer_digits": [1, 1, 1, 1],
    "async_slowdown": [1, 1, 1, 1, 1, 1],
    "async_slowdown_digits": [1, 1, 1, 1],
    "cifar10_cnn4": [1, 1, 1, 1],
    "cifar10_cnn6": [1, 1, 1, 1, 1, 1],
    "cifar10_resnet110": [27, 28],
    "debug": [3, 3],
    "imagenet_resnet152": [26, 25],
    "imagenet_vgg13": [3, 3, 3, 1],
    "imagenet_vgg19": [8, 8],
}
"""Segments of every stage. With the stem, ResNet-152 has 51 and ResNet-110 has 55."""


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


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
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
        small += ["data=synthetic", "data.samples=256"]
    if file.stem.startswith("imagenet"):  # no CUDA devices either
        small += ["precision=fp32"]
    config = compose(parse_arguments(small))
    layout = plan_layout(config.pipeline, config.method, cores=64)
    plan = make_plan(config, layout)
    assert [len(names) for names in plan.spec.segments] == SEGMENTS[file.stem]


def test_heads_of_the_study_read_maps_of_the_sides_that_the_papers_heads_read():
    config = compose(parse_arguments(["experiment=cifar10_cnn6", "data=synthetic"]))
    source = open_images(config)
    spec = build_stages(config, source.info, 6, meta=True).spec
    assert [spec.read_row(j)[1] for j in range(5)] == [32, 16, 16, 8, 8]
