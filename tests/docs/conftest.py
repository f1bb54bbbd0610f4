"""The folder in which the commands of the documents run."""

from __future__ import annotations

import os

import pytest
from documents import BIN, ROOT


@pytest.fixture
def folder(tmp_path):
    """What a reader has: a checkout, and images in the folder `photos`."""
    import torch  # not every test of this folder needs it
    from torchvision.io import write_png

    for name in ("examples", "launch", "conf"):
        (tmp_path / name).symlink_to(ROOT / name)
    for index, place in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (tmp_path / "photos" / place).mkdir(parents=True)
        for number in range(4):
            image = torch.full((3, 32, 32), 50 * index + number, dtype=torch.uint8)
            write_png(image, str(tmp_path / "photos" / place / f"{number}.png"))
    return tmp_path


@pytest.fixture
def environment():
    """Commands by the names that the documents give them, of this very Python."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    return {**own, "PATH": f"{BIN}{os.pathsep}{own['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
