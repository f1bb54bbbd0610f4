"""Augmentation, normalisation and interpolation against plain loops and torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch.nn.functional import pad

from dglpipe.data.sampler import uniform
from dglpipe.data.transforms import (
    BOX_DRAWS,
    CIFAR,
    Augmentation,
    Normalisation,
    centre,
    crop_and_flip,
    random_box,
    resize,
    with_channels,
)


def _one(image, draws, padding, border="zeros"):
    """A single image (H,W,C), step by step."""
    top, left = (int(number * (2 * padding + 1)) for number in draws[:2])
    if border == "reflect":
        borders = (padding,) * 4
        maps = pad(image.double().permute(2, 0, 1)[None], borders, mode="reflect")
        padded = maps[0].permute(1, 2, 0).to(image.dtype)
    else:
        padded = pad(image, (0, 0, padding, padding, padding, padding))
    part = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return part.flip(1) if draws[2] < 0.5 else part


@pytest.mark.parametrize("shape", [(9, 32, 32, 3), (4, 5, 7, 1), (1, 6, 3, 4)])
@pytest.mark.parametrize(
    ("padding", "border"),
    [(0, "zeros"), (1, "zeros"), (4, "zeros"), (2, "reflect"), (0, "reflect")],
)
def test_crop_and_flip_equals_the_loop(shape, padding, border):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    draws = uniform(0, 1, torch.arange(shape[0]), 3)
    own = Augmentation(padding=padding, border=border)
    augmented = crop_and_flip(images, draws, own)
    expected = [_one(*pair, padding, border) for pair in zip(images, draws.tolist(), strict=True)]
    assert augmented.is_contiguous()
    assert augmented.dtype is torch.uint8
    assert torch.equal(augmented, torch.stack(expected))


def test_crop_and_flip_takes_float_images():
    images, draws = torch.rand(3, 8, 8, 2), torch.rand(3, 3)
    expected = [_one(*pair, 4) for pair in zip(images, draws.tolist(), strict=True)]
    assert torch.equal(crop_and_flip(images, draws, Augmentation()), torch.stack(expected))


def test_crop_and_flip_leaves_its_input_alone():
    images = torch.randint(1, 256, (16, 8, 8, 3), dtype=torch.uint8)
    before = images.clone()
    crop_and_flip(images, torch.rand(16, 3), Augmentation())
    assert torch.equal(images, before)


def test_crop_and_flip_uses_every_shift_and_half_of_the_mirrors():
    row = torch.arange(1, 9, dtype=torch.uint8).view(1, 1, 8, 1).expand(2000, 8, 8, 1)
    draws = uniform(1, 1, torch.arange(2000), 3)
    augmented = crop_and_flip(row, draws, Augmentation(padding=1))
    rows = {tuple(line) for line in augmented[:, 4, :, 0].tolist()}
    ahead = {(1, 2, 3, 4, 5, 6, 7, 8), (0, 1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7, 8, 0)}
    assert rows == ahead | {line[::-1] for line in ahead}
    mirrored = (augmented[:, 4, 2, 0] > augmented[:, 4, 3, 0]).double().mean()
    assert abs(mirrored - 0.5) < 0.05


def test_random_box_stays_inside_and_keeps_its_bounds():
    for draws in uniform(0, 1, torch.arange(500), BOX_DRAWS).tolist():
        top, left, height, width = random_box(60, 80, draws)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert 0.07 < height * width / (60 * 80) <= 1
        assert 0.7 < width / height < 1.43


def test_random_box_covers_areas_evenly():
    boxes = [random_box(200, 200, d) for d in uniform(0, 1, torch.arange(2000), 22).tolist()]
    areas = torch.tensor([height * width / 200**2 for _, _, height, width in boxes])
    assert 0.45 < areas.mean() < 0.55  # below 0.54: large boxes fit less often
    assert areas.min() < 0.1
    assert areas.max() > 0.9


@pytest.mark.parametrize(
    ("size", "box"), [((10, 300), (0, 143, 10, 13)), ((300, 10), (143, 0, 13, 10))]
)
def test_random_box_of_a_long_image_is_its_middle(size, box):
    whole = [0.999, 0.5] * 10 + [0.5, 0.5]
    assert random_box(*size, whole) == box


def test_random_box_of_the_whole_image():
    assert random_box(40, 40, [math.nextafter(1, 0), 0.5] * 11) == (0, 0, 40, 40)


def _images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation(channels):
    images = _images(5, 6, 7, channels)
    mean, std = CIFAR.mean[:channels], CIFAR.std[:channels]
    normal = Normalisation(mean, std)(images)
    expected = (images / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert normal.dtype is torch.float32
    assert normal.shape == (5, channels, 6, 7)
    assert normal.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normal, expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_one_mean_for_all_channels():
    images = _images(2, 4, 4, 3)
    once, thrice = Normalisation((0.3,), (0.2,)), Normalisation((0.3,) * 3, (0.2,) * 3)
    assert torch.equal(once(images), thrice(images))


def test_float_images_are_taken_as_they_are():
    images = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    assert torch.equal(CIFAR(images), images.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("size", [(16, 16), (5, 9), (40, 3)])
def test_resize_equals_torchvision(size):
    images = _images(3, 16, 12, 3)
    expected = reference.resize(images.permute(0, 3, 1, 2), list(size), antialias=True)
    resized = resize(images, *size)
    assert resized.is_contiguous()
    assert torch.equal(resized, expected.permute(0, 2, 3, 1))


def test_resize_of_gray_images():
    assert resize(_images(4, 8, 8, 1), 12, 12).shape == (4, 12, 12, 1)


def test_resize_to_the_same_size_copies_nothing():
    images = _images(2, 8, 8, 3)
    assert resize(images, 8, 8) is images


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (64, 64), (20, 31)])
def test_centre_equals_torchvision(shape):
    image = _images(*shape, 3)
    shrunk = reference.resize(image.permute(2, 0, 1), [round(28 * 8 / 7)], antialias=True)
    expected = reference.center_crop(shrunk, [28, 28])
    assert torch.equal(centre(image, 28), expected.permute(1, 2, 0))


def test_gray_is_repeated():
    gray = _images(2, 4, 4, 1)
    assert torch.equal(with_channels(gray, 3), torch.cat((gray,) * 3, 3))
    colour = _images(2, 4, 4, 3)
    assert with_channels(colour, 3) is colour
