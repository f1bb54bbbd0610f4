"""Image folders: decoded once into memory, or by worker processes."""

from __future__ import annotations

import multiprocessing
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torchvision.io import ImageReadMode, decode_image, write_jpeg, write_png

from dglpipe.config import ImageFolderConfig
from dglpipe.data import Request, loading_processes, open_data
from dglpipe.data.decode import decode
from dglpipe.data.in_memory import InMemory
from dglpipe.data.sampler import uniform
from dglpipe.data.streaming import Streamed
from dglpipe.data.transforms import BOX_DRAWS, CIFAR, IMAGENET, random_box
from dglpipe.errors import ConfigError, DataError
from harness.worlds import fork_server

pytestmark = pytest.mark.filterwarnings("ignore:.*TorchCodec:DeprecationWarning")
_CIFAR10 = os.environ.get("DGLPIPE_CIFAR10", "")


def _image(height=12, width=12, channels=3):
    generator = torch.Generator().manual_seed(height * 100 + width)
    size = (channels, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def _fill(root: Path, sizes=((12, 12),), train=4, test=2):
    """A folder with two classes and images of alternating sizes."""
    for split, count in (("train", train), ("test", test)):
        for label in "ab":
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                write_jpeg(_image(*sizes[index % len(sizes)]), f"{folder}/{index}.jpg")


def _open(root, **settings):
    return open_data(ImageFolderConfig(root=str(root), **settings), seed=5)


def _requests(*batches, training=True, epoch=1):
    return [Request(training, epoch, torch.tensor(indices)) for indices in batches]


@pytest.fixture
def small(tmp_path):
    _fill(tmp_path)
    return tmp_path


@pytest.fixture
def mixed(tmp_path):
    _fill(tmp_path, sizes=((20, 30), (17, 17), (40, 15)))
    return tmp_path


def test_small_images_are_held_in_memory(small):
    source = _open(small, augment=False)
    info, data = source.info, source.load()
    assert (info.train, info.test, info.classes) == (8, 4, ("a", "b"))
    assert (info.channels, info.height, info.width) == (3, 12, 12)
    assert isinstance(data, InMemory)
    images, labels = next(data.batches(_requests([5, 0])))
    expected = decode_image(str(small / "train" / "b" / "1.jpg")).permute(1, 2, 0)
    assert torch.equal(images[:1], CIFAR(expected[None]))
    assert labels.tolist() == [1, 0]
    _, labels = next(data.batches(_requests([1, 2], training=False)))
    assert labels.tolist() == [0, 1]


def test_more_images_than_one_thread_takes_at_once(tmp_path):
    _fill(tmp_path, train=260, test=1)
    data = _open(tmp_path).load()
    assert data.train.images.shape == (520, 12, 12, 3)
    assert (data.train.images == data.train.images[0]).all()


def test_another_size(small):
    source = _open(small, image_size=20)
    assert (source.info.height, source.info.width) == (20, 20)
    data = source.load()
    assert isinstance(data, InMemory)
    original = decode_image(str(small / "train" / "a" / "0.jpg"))
    expected = reference.resize(original, [20, 20], antialias=True)
    assert torch.equal(data.train.images[0], expected.permute(1, 2, 0))
    assert source.info.fingerprint != _open(small).info.fingerprint


REFLECTED = {"crop_padding": 2, "crop_border": "reflect", "flip": "alternating"}


@pytest.mark.parametrize("settings", [{}, {"image_size": 16}, {"augment": False}, REFLECTED])
def test_streamed_images_equal_images_in_memory(small, settings):
    memory = _open(small, **settings).load()
    files = _open(small, memory_limit_mb=0, workers=0, **settings).load()
    assert isinstance(files, Streamed)
    requests = _requests([7, 1, 3], [0]) + _requests([2, 3], training=False)
    pairs = zip(memory.batches(requests), files.batches(requests), strict=True)
    for (images, labels), (others, other_labels) in pairs:
        assert torch.equal(images, others)
        assert others.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"crop_padding": 12, "crop_border": "reflect"},
            r"crop_padding: got 12.*0 to 11 for",
        ),
        ({"crop_padding": -1}, r"data\.crop_padding: got -1"),
        ({"crop_border": "black"}, r"data\.crop_border: got 'black'"),
        ({"augment": False, "crop_padding": 2}, r"got 2; allowed: 4 with data\.augment=false"),
        ({"transform": "imagenet", "crop_padding": 2}, r"4 with data\.transform=imagenet"),
        ({"augment": False, "flip": "alternating"}, r"random with data\.augment=false"),
    ],
)
def test_crops_that_cannot_be_made_are_refused(small, settings, message):
    with pytest.raises(ConfigError, match=message):
        _ = _open(small, **settings).info


def test_images_that_differ_take_the_size_of_the_first(mixed):
    source = _open(mixed, workers=0)
    assert (source.info.height, source.info.width) == (20, 30)
    data = source.load()
    assert isinstance(data, Streamed)
    images, _ = next(data.batches(_requests([0, 1, 2, 3])))
    assert images.shape == (4, 3, 20, 30)


def test_imagenet_in_training(mixed):
    data = _open(mixed, transform="imagenet", image_size=16, workers=0).load()
    images, _ = next(data.batches(_requests([2, 7], epoch=3)))
    draws = uniform(5, 3, torch.tensor([2, 7]), BOX_DRAWS + 1).tolist()
    for image, numbers, name in zip(images, draws, ("a/2.jpg", "b/3.jpg"), strict=True):
        original = decode_image(str(mixed / "train" / name))
        box = random_box(*original.shape[1:], numbers[:BOX_DRAWS])
        part = reference.resized_crop(original, *box, [16, 16], antialias=True)
        part = reference.horizontal_flip(part) if numbers[-1] < 0.5 else part
        assert torch.equal(image, IMAGENET(part.permute(1, 2, 0)[None])[0])


@pytest.mark.parametrize(("training", "augment"), [(False, True), (True, False)])
def test_imagenet_at_test_time(mixed, training, augment):
    data = _open(mixed, transform="imagenet", image_size=14, workers=0, augment=augment).load()
    images, _ = next(data.batches(_requests([1], training=training)))
    original = decode_image(str(mixed / ("train" if training else "test") / "a" / "1.jpg"))
    part = reference.center_crop(reference.resize(original, [16], antialias=True), [14, 14])
    assert torch.equal(images, IMAGENET(part.permute(1, 2, 0)[None]))


def test_imagenet_is_224_unless_asked(small):
    info = _open(small, transform="imagenet").info
    assert (info.height, info.width) == (224, 224)


@pytest.mark.slow
def test_workers_give_the_same_batches_and_exit(mixed, monkeypatch):
    context = fork_server()
    monkeypatch.setattr(loading_processes.multiprocessing, "get_context", lambda _: context)
    requests = _requests([7, 1, 3], [0, 2], [4, 5, 6], epoch=2) + _requests([0], training=False)
    settings = {"transform": "imagenet", "image_size": 16}
    before, children = torch.get_rng_state(), set(multiprocessing.active_children())
    alone = list(_open(mixed, workers=0, **settings).load().batches(requests))
    data = _open(mixed, workers=2, **settings).load()
    several = list(data.batches(iter(requests)))
    assert len(several) == 4
    for (images, labels), (others, other_labels) in zip(alone, several, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    # Closed early, by the iterator and by the data set.
    for close in (lambda batches: batches.close(), lambda batches: data.close()):
        batches = data.batches(_requests(*[[0, 1]] * 50))
        next(batches)
        assert set(multiprocessing.active_children()) - children
        close(batches)
        assert set(multiprocessing.active_children()) == children
        assert next(batches, None) is None
    _damage(mixed / "train" / "a" / "1.jpg")
    batches = data.batches(_requests([0], [1], [2]))
    next(batches)
    with pytest.raises(DataError, match=r"^\S*train/a/1.jpg: cannot be decoded as an image"):
        next(batches)
    assert set(multiprocessing.active_children()) == children
    assert torch.equal(torch.get_rng_state(), before)


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_no_workers_leave_the_global_generator_alone(small):
    before = torch.get_rng_state()
    list(_open(small, memory_limit_mb=0, workers=0).load().batches(_requests([0], [1])))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("loaders", "workers"), [(1, 8), (3, 2), (16, 1)])
def test_replicas_share_one_worker_per_core(small, monkeypatch, loaders, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    files = {"root": str(small), "memory_limit_mb": 0}
    assert open_data(ImageFolderConfig(**files), 5, None, loaders).load().workers == workers
    own = ImageFolderConfig(**files, workers=5)
    assert open_data(own, 5, None, loaders).load().workers == 5, "what was asked for"
    assert open_data(ImageFolderConfig(root=str(small)), 5).load().workers is None


@pytest.mark.parametrize("index", [0, 3])
def test_damaged_image(small, index):
    _damage(small / "train" / "b" / f"{index}.jpg")
    with pytest.raises(DataError, match=rf"train/b/{index}.jpg: cannot be decoded as an image \("):
        _open(small).load()


def test_damaged_first_image(small):
    _damage(small / "train" / "a" / "0.jpg")
    with pytest.raises(DataError, match=r"train/a/0.jpg: cannot be decoded .*; remove or replace"):
        _ = _open(small, image_size=8).info


def test_image_that_vanished(small):
    source = _open(small)
    _ = source.info
    (small / "test" / "a" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"test/a/0.jpg: cannot be decoded .*No such file"):
        source.load()


def test_memory_limit_is_in_mib(small):
    # 12 images of 3 * 350^2 bytes: 4.2 MiB.
    assert isinstance(_open(small, image_size=350, memory_limit_mb=5).load(), InMemory)
    assert isinstance(_open(small, image_size=350, memory_limit_mb=4).load(), Streamed)


def test_gray_networks_are_refused(small):
    source = open_data(ImageFolderConfig(root=str(small)), 0, wanted_channels=1)
    with pytest.raises(DataError, match="data=image_folder: the images have 3 channels"):
        _ = source.info


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_kind_of_png_becomes_rgb(tmp_path, channels):
    # write_png makes no RGBA: its four channels come from `_png`.
    pixels = _image(5, 6, channels)
    path = tmp_path / "x.png"
    path.write_bytes(_png(pixels.permute(1, 2, 0).contiguous(), channels))
    expected = pixels.expand(3, 5, 6) if channels == 1 else pixels[:3]
    assert torch.equal(decode(str(path)), expected.permute(1, 2, 0))


def test_png_of_16_bits(tmp_path):
    path = tmp_path / "x.png"
    deep = torch.tensor([[[0x12, 0x34], [0xFF, 0xFF]]], dtype=torch.uint8)
    path.write_bytes(_png(deep, 1, bits=16))
    assert decode(str(path))[0, :, 1].tolist() == [0x12, 0xFF]


def _png(pixels, channels, bits=8):
    """A PNG file of rows of bytes (H, W, ...)."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)

    def chunk(name, body):
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_animation_is_cut_down_to_its_first_frame(tmp_path):
    screen = struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes([255, 0, 0, 0, 0, 255])
    place = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    red, blue = place + b"\x02\x02\x44\x01\x00", place + b"\x02\x02\x4c\x01\x00"
    path = tmp_path / "x.gif"
    path.write_bytes(b"GIF89a" + screen + red + blue + b";")
    assert decode_image(str(path), ImageReadMode.RGB).shape[0] == 2
    assert decode(str(path)).tolist() == [[[255, 0, 0]]]


def test_png_files_in_a_folder(tmp_path):
    for split in ("train", "val"):
        for label, channels in (("gray", 1), ("colour", 3)):
            (tmp_path / split / label).mkdir(parents=True)
            write_png(_image(6, 6, channels), f"{tmp_path}/{split}/{label}/0.png")
    data = _open(tmp_path, augment=False).load()
    images, labels = next(data.batches(_requests([0, 1])))
    assert images.shape == (2, 3, 6, 6)
    assert labels.tolist() == [0, 1]


@pytest.mark.skipif(not _CIFAR10, reason="DGLPIPE_CIFAR10 names no folder of CIFAR-10 (JPEG)")
def test_cifar10_as_jpeg():
    source = open_data(ImageFolderConfig(root=_CIFAR10), seed=0)
    info, data = source.info, source.load()
    assert (info.train, info.test) == (50_000, 10_000)
    assert (info.channels, info.height, info.width) == (3, 32, 32)
    assert data.train.labels.bincount().tolist() == [5000] * 10
    images, _ = next(data.batches(_requests(range(0, 50_000, 10))))
    # Augmentation brings in black, which is below the mean.
    assert -0.4 < images.mean() < -0.2
    plain, _ = next(data.batches(_requests(range(10_000), training=False)))
    assert plain.mean().abs() < 0.02
    assert 0.95 < plain.std() < 1.35
