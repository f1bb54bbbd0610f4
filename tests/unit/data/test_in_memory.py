"""Batches from memory, and the content of the embedded data sets."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dglpipe.config import DigitsConfig, SyntheticConfig
from dglpipe.data import DataInfo, Request, open_data
from dglpipe.data.in_memory import InMemory, Split
from dglpipe.data.info import fingerprint
from dglpipe.data.transforms import CIFAR, Augmentation
from dglpipe.errors import DataError


def _split(size):
    images = torch.randint(0, 256, (size, 8, 8, 3), dtype=torch.uint8)
    return Split(images, torch.arange(size) % 5)


def _ask(data, training, epoch, *indices):
    return next(data.batches([Request(training, epoch, torch.tensor(indices))]))


@pytest.fixture
def data():
    return InMemory(_split(20), _split(10), CIFAR, seed=3, augmentation=Augmentation())


def test_batches_answer_in_order_and_lazily(data):
    asked = []

    def requests():
        for training in (True, False):
            asked.append(training)
            yield Request(training, 1, torch.tensor([4, 2]))

    batches = data.batches(requests())
    assert asked == []
    images, labels = next(batches)
    assert asked == [True]
    assert images.shape == (2, 3, 8, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [4, 2]
    assert labels.dtype is torch.int64
    test_images, _ = next(batches)
    assert torch.equal(test_images, CIFAR(data.test.images[[4, 2]]))
    with pytest.raises(StopIteration):
        next(batches)
    data.close()


def test_augmentation_does_not_depend_on_the_batch(data):
    together, _ = _ask(data, True, 2, *range(20))
    for index in range(20):
        alone, _ = _ask(data, True, 2, index)
        assert torch.equal(alone[0], together[index])
    mixed, _ = _ask(data, True, 2, 7, 19, 0)
    assert torch.equal(mixed, together[[7, 19, 0]])


def test_augmentation_depends_on_epoch_and_seed(data):
    other = InMemory(data.train, data.test, CIFAR, seed=4, augmentation=Augmentation())
    first = _ask(data, True, 1, *range(20))[0]
    assert torch.equal(first, _ask(data, True, 1, *range(20))[0])
    assert not torch.equal(first, _ask(data, True, 2, *range(20))[0])
    assert not torch.equal(first, _ask(other, True, 1, *range(20))[0])


def test_alternating_flips_reach_the_images():
    columns = torch.arange(32, dtype=torch.uint8).view(1, 1, 32, 1).expand(20, 32, 32, 1)
    split = Split(columns.contiguous(), torch.zeros(20, dtype=torch.int64))
    flipped = {}
    for flip in ("random", "alternating"):
        data = InMemory(split, split, seed=3, augmentation=Augmentation(flip))
        for epoch in (1, 2, 3):
            images, _ = _ask(data, True, epoch, *range(20))
            flipped[flip, epoch] = images[:, 0, 16, 15] > images[:, 0, 16, 16]
    assert torch.equal(flipped["alternating", 1], ~flipped["alternating", 2])
    assert torch.equal(flipped["alternating", 1], flipped["alternating", 3])
    assert not torch.equal(flipped["random", 1], ~flipped["random", 2])
    assert torch.equal(flipped["random", 1], flipped["alternating", 1])


def test_without_augmentation_training_images_are_plain(data):
    plain = InMemory(data.train, data.test, CIFAR, seed=3)
    assert torch.equal(_ask(plain, True, 1, 5)[0], CIFAR(data.train.images[5:6]))


def test_digits():
    source = open_data(DigitsConfig(), seed=0)
    info, data = source.info, source.load()
    wanted = DataInfo("digits", 1437, 360, tuple("0123456789"), 1, 8, 8, info.fingerprint)
    assert info == replace(wanted, pixels=data.normalisation)
    assert data.train.images.shape == (1437, 8, 8, 1)
    assert data.test.images.shape == (360, 8, 8, 1)
    counts = data.test.labels.bincount()
    assert (counts.min(), counts.max()) == (35, 37)
    assert data.train.labels.bincount().min() >= 139
    assert data.train.images.max() == 255
    images, _ = _ask(data, True, 1, *range(1437))
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


def test_digits_are_shuffled_and_the_splits_share_no_image():
    data = open_data(DigitsConfig(), seed=0).load()
    assert data.train.labels[:50].unique().numel() == 10
    train = {tuple(image) for image in data.train.images.flatten(1).tolist()}
    assert not train & {tuple(image) for image in data.test.images.flatten(1).tolist()}


def test_digits_of_another_size_in_colour():
    source = open_data(DigitsConfig(image_size=16), seed=0, wanted_channels=3)
    info = source.info
    assert (info.channels, info.height, info.width) == (3, 16, 16)
    assert info.fingerprint != open_data(DigitsConfig(), 0).info.fingerprint
    images, _ = _ask(source.load(), True, 1, 0, 1)
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 2])


def test_a_simple_rule_classifies_digits():
    data = open_data(DigitsConfig(), seed=0).load()
    train, test = (split.images.flatten(1).float() for split in (data.train, data.test))
    nearest = data.train.labels[torch.cdist(test, train).argmin(1)]
    assert (nearest == data.test.labels).float().mean() > 0.97


@pytest.mark.parametrize(("samples", "test"), [(100, 25), (3, 1), (1, 1)])
def test_synthetic_sizes(samples, test):
    source = open_data(SyntheticConfig(samples=samples, image_size=8), seed=0)
    data = source.load()
    assert (source.info.train, source.info.test) == (samples, test)
    assert (len(data.train.images), len(data.test.images)) == (samples, test)


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 1, 2), (2, 7, 3), (3, 32, 10)])
def test_synthetic_shapes(channels, side, classes):
    config = SyntheticConfig(samples=12, channels=channels, image_size=side, classes=classes)
    source = open_data(config, seed=0)
    images, labels = _ask(source.load(), True, 1, *range(12))
    info = source.info
    shape = (info.channels, info.height, info.width)
    assert images.shape[1:] == shape == (channels, side, side)
    assert len(info.classes) == classes
    assert labels.max() < classes
    assert images.isfinite().all()


def test_synthetic_is_a_function_of_the_seed():
    config = SyntheticConfig(samples=300, image_size=4)
    one, same, other = (open_data(config, seed) for seed in (0, 0, 1))
    assert one.info == same.info
    assert one.info.fingerprint != other.info.fingerprint
    assert torch.equal(one.load().train.images, same.load().train.images)
    assert not torch.equal(one.load().train.images, other.load().train.images)
    assert not torch.equal(one.load().train.images[:75], one.load().test.images)


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
def test_synthetic_images_are_of_unit_variance(noise):
    config = SyntheticConfig(samples=400, image_size=8, noise=noise)
    images, _ = _ask(open_data(config, 0).load(), True, 1, *range(400))
    assert abs(images.square().mean() - 1) < 0.05


def test_synthetic_can_be_learnt():
    data = open_data(SyntheticConfig(samples=400, image_size=16), seed=0).load()
    images, labels = _ask(data, True, 1, *range(400))
    means = torch.stack([images[labels == label].mean(0) for label in range(10)]).flatten(1)
    test, answers = _ask(data, False, 1, *range(100))
    guesses = torch.cdist(test.flatten(1), means).argmin(1)
    assert (guesses == answers).float().mean() > 0.95


def test_synthetic_gray_is_repeated():
    source = open_data(SyntheticConfig(samples=4, channels=1), 0, wanted_channels=3)
    assert source.info.channels == 3
    assert _ask(source.load(), True, 1, 0)[0].shape == (1, 3, 32, 32)


def test_channels_that_a_network_cannot_take():
    source = open_data(SyntheticConfig(channels=2), 0, wanted_channels=3)
    with pytest.raises(DataError, match="data=synthetic: the images have 2 channels, the network"):
        _ = source.info


def test_fingerprint_separates_its_parts():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(("a", 1)) == fingerprint(("a", 1))
    assert fingerprint("\udcff") != fingerprint("\udcfe")
    assert len(fingerprint(b"x")) == 32


@pytest.mark.slow
def test_embedded_data_sets_load_no_torchvision():
    code = """
import sys
from dglpipe.config import DigitsConfig, SyntheticConfig
from dglpipe.data import open_data, batch_schedule
for config in (DigitsConfig(), SyntheticConfig(samples=8)):
    source = open_data(config, seed=0, wanted_channels=3)
    assert source.info.channels == 3
    source.load().close()
sys.exit("torchvision" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
