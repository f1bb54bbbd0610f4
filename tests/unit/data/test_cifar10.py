"""CIFAR-10 with stand-ins for the published files."""

from __future__ import annotations

import hashlib
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from dglpipe.config import Cifar10Config
from dglpipe.data import Request, open_data
from dglpipe.data.cifar10 import _CLASSES
from dglpipe.data.transforms import CIFAR, Augmentation
from dglpipe.errors import DataError

_ROWS = 6


def _write(path, content):
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A root with seven small files, which torchvision takes for the published ones."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    random = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    entries = []
    for name in names:
        pixels = random.integers(0, 256, (_ROWS, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, _ROWS).tolist()
        entries.append(_write(folder / name, {"data": pixels, "labels": labels}))
    name, md5 = _write(folder / "batches.meta", {"label_names": list(_CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", entries[:5])
    monkeypatch.setattr(CIFAR10, "test_list", entries[5:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return tmp_path


def test_pixels_and_labels(published):
    data = open_data(Cifar10Config(root=str(published), augment=False), seed=0).load()
    raw = pickle.loads((published / CIFAR10.base_folder / "data_batch_2").read_bytes())
    assert data.train.images.shape == (5 * _ROWS, 32, 32, 3)
    assert data.test.images.shape == (_ROWS, 32, 32, 3)
    images, labels = next(data.batches([Request(True, 1, torch.tensor([_ROWS]))]))
    expected = torch.from_numpy(raw["data"][:1].reshape(1, 3, 32, 32)).permute(0, 2, 3, 1)
    assert torch.equal(images, CIFAR(expected))
    assert labels.tolist() == raw["labels"][:1]


def test_augmentation_and_size(published):
    config = Cifar10Config(root=str(published), image_size=16)
    source = open_data(config, seed=0)
    data = source.load()
    assert data.augmentation == Augmentation()
    assert data.train.images.shape == (5 * _ROWS, 16, 16, 3)
    assert (source.info.height, source.info.width) == (16, 16)


def test_description_reads_no_pixels(published):
    for name, _ in CIFAR10.train_list:
        (published / CIFAR10.base_folder / name).write_bytes(b"")
    info = open_data(Cifar10Config(root=str(published)), seed=0).info
    assert (info.train, info.test, info.channels) == (50_000, 10_000, 3)
    assert info.classes[3] == "cat"


def test_description_of_what_is_to_be_downloaded(tmp_path, published):
    missing = Cifar10Config(root=str(tmp_path / "new"), download=True)
    there = Cifar10Config(root=str(published))
    assert open_data(missing, 0).info == open_data(there, 0).info


@pytest.mark.parametrize("use", [lambda source: source.info, lambda source: source.load()])
def test_missing_root(tmp_path, use):
    source = open_data(Cifar10Config(root=str(tmp_path / "none")), seed=0)
    with pytest.raises(DataError) as caught:
        use(source)
    assert f"data.root={tmp_path / 'none'}: contains no CIFAR-10" in str(caught.value)
    assert f"there is no folder {tmp_path / 'none'}" in str(caught.value)
    assert "data.download=true" in str(caught.value)


def test_root_with_other_things_in_it(tmp_path):
    source = open_data(Cifar10Config(root=str(tmp_path)), seed=0)
    with pytest.raises(DataError, match=r"found nothing\."):
        _ = source.info
    for name in "bacdefghij":
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"found a, b, c, d, e, f, g, h, \.\.\."):
        _ = source.info


def test_damaged_file(published):
    (published / CIFAR10.base_folder / "data_batch_3").write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=r"cannot read CIFAR-10 \(.*corrupted.*Set data.download=true"
    ):
        open_data(Cifar10Config(root=str(published)), seed=0).load()


def test_download_that_fails(tmp_path, monkeypatch):
    def refuse(self):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", refuse)
    source = open_data(Cifar10Config(root=str(tmp_path / "new"), download=True), seed=0)
    with pytest.raises(DataError, match=r"no route to host.*Check the network"):
        source.load()


def test_download_under_a_lock(published, monkeypatch):
    monkeypatch.setattr(CIFAR10, "download", lambda self: None)
    data = open_data(Cifar10Config(root=str(published), download=True), seed=0).load()
    assert len(data.train.labels) == 5 * _ROWS
    assert (published / ".download.lock").exists()


def test_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    source = open_data(Cifar10Config(root=str(tmp_path / "file"), download=True), seed=0)
    with pytest.raises(DataError, match="file: cannot be written"):
        source.load()


def test_gray_networks_are_refused(published):
    source = open_data(Cifar10Config(root=str(published)), seed=0, wanted_channels=1)
    with pytest.raises(DataError, match="have 3 channels, the network requires 1"):
        _ = source.info
