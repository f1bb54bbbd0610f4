"""Data sets from outside the package."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dglpipe.config import PluginConfig
from dglpipe.data import Request, open_data
from dglpipe.errors import ConfigError, DataError


def _pair(size=6, shape=(2, 4, 5), labels=None):
    images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    return images, torch.arange(size) % 3 if labels is None else torch.as_tensor(labels)


@pytest.fixture
def opened(monkeypatch):
    """Opens the data set that the plug-in `toys:build` returns."""

    def open_plug_in(built, wanted_channels=None, **args):
        module = ModuleType("toys")
        module.build = built if callable(built) else lambda: built
        monkeypatch.setitem(sys.modules, "toys", module)
        config = PluginConfig(target="toys:build", args=args)
        return open_data(config, 7, wanted_channels)

    return open_plug_in


def _built(train=None, test=None, **more):
    return SimpleNamespace(train=train or _pair(), test=test or _pair(3), **more)


def _ask(data, training, *indices):
    return next(data.batches([Request(training, 1, torch.tensor(indices))]))


def test_pair_of_bytes(opened):
    built = _built()
    source = opened(built)
    info = source.info
    assert (info.train, info.test) == (6, 3)
    assert (info.channels, info.height, info.width) == (2, 4, 5)
    assert info.classes == ("0", "1", "2")
    images, labels = _ask(source.load(), True, 5, 0)
    assert torch.allclose(images, built.train[0][[5, 0]] / 255)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [2, 0]


def test_pair_of_floats_is_taken_as_it_is(opened):
    images = np.random.default_rng(0).normal(size=(4, 1, 3, 3))
    source = opened(_built((images, np.array([0, 1, 0, 1])), (images, np.array([1, 1, 0, 0]))))
    found, _ = _ask(source.load(), False, 1, 2)
    assert found.dtype is torch.float32
    assert torch.equal(found, torch.from_numpy(images[1:3]).float())


def _rows(pair):
    return list(zip(*pair, strict=True))


@pytest.mark.parametrize("wrap", [lambda pair: TensorDataset(*pair), _rows])
def test_map_style_equals_the_pair(opened, wrap):
    train, test = _pair(2), _pair(2)
    rows, pairs = opened(_built(wrap(train), wrap(test))), opened(_built(train, test))
    assert rows.info == pairs.info
    for training in (True, False):
        for one, other in zip(
            _ask(rows.load(), training, 1, 0), _ask(pairs.load(), training, 1, 0), strict=True
        ):
            assert torch.equal(one, other)


def test_arguments_seed_and_gray(opened):
    def build(size, seed):
        assert seed == 7
        return _built(_pair(size, (1, 4, 4)), _pair(2, (1, 4, 4)))

    source = opened(build, wanted_channels=3, size=8)
    assert (source.info.train, source.info.channels) == (8, 3)
    assert _ask(source.load(), True, 0)[0].shape == (1, 3, 4, 4)


@pytest.mark.parametrize("classes", [4, ["w", "x", "y", "z"]])
def test_given_classes(opened, classes):
    source = opened(_built(classes=classes))
    assert source.info.classes == tuple(map(str, classes if classes != 4 else range(4)))


def test_given_classes_spare_reading_the_rows(opened):
    class Rows:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            assert index == 0
            return torch.zeros(3, 2, 2), 0

    info = opened(_built(Rows(), Rows(), classes=2)).info
    assert (info.train, info.channels) == (1000, 3)


def test_fingerprint_follows_target_and_arguments(opened):
    def build(size):
        return _built(_pair(6))

    prints = [opened(build, size=size).info.fingerprint for size in (1, 1, 2)]
    assert prints[0] == prints[1] != prints[2]


def _row(image, label=0):
    return [(image, label), (image, label), (image, label)]


_GOOD = torch.zeros(2, 4, 5, dtype=torch.uint8)
_WRONG = {
    "no pair": (5, "train is a int, neither a pair of tensors nor a map-style data set"),
    "empty list": ([], "train is empty"),
    "empty pair": ((torch.zeros(0, 2, 4, 5), torch.zeros(0)), "train is empty: its images"),
    "flat images": ((torch.zeros(3, 8), torch.zeros(3)), r"images of shape \(8,\), expected \(C,"),
    "flat rows": (_row(torch.zeros(8)), r"images of shape \(8,\), expected \(C,H,W\)"),
    "integers": ((torch.zeros(3, 2, 4, 5).int(), [0] * 3), "images of torch.int32, expected"),
    "integer rows": (_row(_GOOD.int()), "images at index 0 of torch.int32, expected uint8"),
    "row": ([1, 2, 3], r"has int at index 0, expected \(image tensor, label\)"),
    "strings": (_row("cat.png"), r"has \(str, int\) at index 0, expected \(image tensor"),
    "names": ((_GOOD[None], ["cat"]), r"train cannot be converted to tensors \("),
    "counts": (_pair(6, labels=[0, 1]), "train has 6 images and 2 labels"),
    "floats": (_pair(2, labels=[0.5, 1.0]), r"labels of shape \(2,\) and type torch.float32"),
    "one-hot": (_pair(2, labels=[[0, 1], [1, 0]]), r"labels of shape \(2, 2\) and type"),
    "float label": (_row(_GOOD, 0.5), "train has label 0.5 at index 0, expected a whole number"),
    "name": (_row(_GOOD, "cat"), "train has label 'cat' at index 0, expected a whole number"),
    "vector": (_row(_GOOD, torch.tensor([0, 1])), r"label tensor\(\[0, 1\]\) at index 0, expe"),
    "sizes": (
        [*_row(_GOOD), (_GOOD[:, :3], 0)],
        r"image of \(2, 3, 5\) and torch.uint8 at index 3",
    ),
    "types": ([*_row(_GOOD), (_GOOD.float(), 0)], r"\(2, 4, 5\) and torch.float32 at index 3, exp"),
    "negative": (
        _pair(3, labels=[0, 1, -4]),
        "train has label -4 at index 2; allowed: 0 or more",
    ),
}


@pytest.mark.parametrize("case", _WRONG)
def test_wrong_splits_are_refused(opened, case):
    train, message = _WRONG[case]
    with pytest.raises(DataError, match="data.target=toys:build: .*" + message):
        source = opened(SimpleNamespace(train=train, test=_pair(3)))
        _ = source.info, source.load()


@pytest.mark.parametrize("label", [-1, 3])
def test_test_label_outside_the_classes(opened, label):
    source = opened(_built(test=_pair(3, labels=[0, label, 1])))
    with pytest.raises(DataError, match=rf"test has label {label} at index 1; allowed: 0\.\.2"):
        source.load()


def test_training_label_outside_the_given_classes(opened):
    with pytest.raises(DataError, match=r"train has label 2 at index 2; allowed: 0\.\.1"):
        opened(_built(classes=["no", "yes"])).load()


def test_splits_of_different_shapes(opened):
    with pytest.raises(DataError, match=r"images of train are \(2, 4, 5\), images of test \(1, 4"):
        _ = opened(_built(test=_pair(3, (1, 4, 5)))).info


def test_object_without_splits(opened):
    with pytest.raises(DataError, match="built a SimpleNamespace without train and test; return"):
        _ = opened(SimpleNamespace()).info


def test_target_and_arguments_that_do_not_fit(opened):
    with pytest.raises(ConfigError, match=r"data\.args"):
        _ = opened(lambda: _built(), size=3).info
    with pytest.raises(ConfigError, match=r"data\.target"):
        _ = open_data(PluginConfig(target="no_such_module:build"), 0).info
