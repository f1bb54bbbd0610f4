"""Normalisation and interpolation against plain arithmetic and torchvision."""

from __future__ import annotations

import pytest
import torch
import torchvision.transforms.v2.functional as reference

from dglpipe.data.transforms import CIFAR, Normalisation, centre, resize, with_channels


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
