"""Errors in the data that only a worker finds, before its first step."""

from __future__ import annotations

import pytest
import torch
from torchvision.io import write_jpeg, write_png

from harness.configs import in_test_all

TRAIN = ("train", "run_dir=run", "model.width=4", "batch_size=2", "pipeline.processes=1")


@pytest.fixture
def refused(start, tmp_path):
    """The error message; the command may have no other effect."""

    def start_and_listen(*settings: str) -> str:
        run = start(*TRAIN, *settings)
        assert run.wait() == 2, run.stderr
        assert not run.stdout
        assert run.stderr.startswith("dglpipe: "), run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr
        left = {path.name for path in tmp_path.glob("command_0/*")} - {"stdout", "stderr"}
        assert not left, "the command left files"
        return run.stderr

    return start_and_listen


@pytest.fixture
def images(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            image = torch.full((3, 8, 8), number, dtype=torch.uint8)
            write_png(image, str(tmp_path / "images" / name / f"{number}.png"))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "write"), [in_test_all("1.jpg", write_jpeg), ("1.png", write_png)]
)
def test_damaged_image_is_named(name, write, images, refused):
    damaged = images / "train" / "dog" / name
    write(torch.zeros(3, 8, 8, dtype=torch.uint8), str(damaged))
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + data[-2:])  # found only by decoding
    message = refused("data=image_folder", f"data.root={images}")
    assert f"dglpipe: {damaged}: cannot be decoded as an image" in message


def test_label_outside_the_classes_is_named(refused):
    message = refused("data=custom", "data.target=harness.plug_ins:LabelsOutside")
    assert (
        "data.target=harness.plug_ins:LabelsOutside: train has label 3 at index 5; allowed: 0..2"
        in message
    )
