"""Mistakes in the data that only a worker finds, before its first step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torchvision.io import write_png

TRAIN = (sys.executable, "-m", "dglpipe", "train", "run_dir=run", "model.width=4", "batch_size=2")

LABELS_OUTSIDE = """
import torch

class Data:
    classes = 3
    train = test = torch.rand(8, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 3, 0, 1])
"""


def refused(folder, *settings: str) -> str:
    """What is said; nothing but that may come of it."""
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        [*TRAIN, "pipeline.processes=1", *settings],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert done.stderr.startswith("dglpipe: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(folder.rglob("*")) == before, "something was left behind"
    return done.stderr


@pytest.fixture
def images(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            image = torch.full((3, 8, 8), number, dtype=torch.uint8)
            write_png(image, str(tmp_path / "images" / name / f"{number}.png"))
    return tmp_path / "images"


def test_damaged_image_is_named(images, tmp_path):
    damaged = images / "train" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:50])
    said = refused(tmp_path, "data=image_folder", f"data.root={images}")
    assert f"dglpipe: {damaged}: cannot be decoded as an image" in said


def test_label_outside_the_classes_is_named(tmp_path):
    (tmp_path / "outside.py").write_text(LABELS_OUTSIDE)
    said = refused(tmp_path, "data=custom", "data.target=outside:Data")
    assert "data.target=outside:Data: train has label 3 at index 5; allowed: 0..2" in said
