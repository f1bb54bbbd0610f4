"""Decodes image files; the only module that imports the decoder of torchvision."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from dglpipe.data.transforms import resize
from dglpipe.errors import DataError
from dglpipe.host import cores

_RGB = ImageReadMode.RGB
_CHUNK = 256
"""Images that a thread decodes at a time."""
_MAX_THREADS = 8


class SizesDifferError(Exception):
    """An image does not have the expected height and width."""


def decode(path: str) -> Tensor:
    """Decodes an image file.

    Gray is repeated, alpha is dropped. Of an animation, the first frame is returned; of 16-bit
    pixels, the upper 8 bits.

    Returns:
        (H,W,3) uint8.

    Raises:
        DataError: the file cannot be read or decoded.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - twice as fast as Path.open
            content = bytearray(file.read())
        _require_whole_png(content)
        image: Tensor = decode_image(torch.frombuffer(content, dtype=torch.uint8), _RGB)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be decoded as an image ({reason}); remove or replace the file"
        ) from error
    if image.dim() == 4:
        image = image[0]
    if image.dtype is torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image.permute(1, 2, 0)


_PNG = b"\x89PNG\r\n\x1a\n"


def _require_whole_png(content: bytearray) -> None:
    """Raises ValueError for a PNG file with a damaged chunk, which could crash the decoder."""
    if not content.startswith(_PNG):
        return
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        size = int.from_bytes(content[at : at + 4], "big")
        kind, end = bytes(content[at + 4 : at + 8]), at + 8 + size
        crc = int.from_bytes(content[end : end + 4], "big")
        if end + 4 > len(content) or zlib.crc32(memoryview(content)[at + 4 : end]) != crc:
            raise ValueError(f"PNG chunk {kind!r} at byte {at} is damaged")
        at = end + 4


def decode_all(paths: Sequence[str], size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Decodes images of equal size in threads, and resizes them.

    Args:
        paths: n files.
        size: height and width of every image file.
        target: height and width of the result.

    Returns:
        (n,H,W,3) uint8, with H and W of `target`.

    Raises:
        DataError: a file cannot be decoded.
        SizesDifferError: an image file is not of `size`.
    """
    images = torch.empty((len(paths), *target, 3), dtype=torch.uint8)
    fill = partial(_decode_some, paths, images, size)
    # Threads, since decoding releases the GIL.
    pool = ThreadPoolExecutor(min(_MAX_THREADS, cores()))
    try:
        for _ in pool.map(fill, range(0, len(paths), _CHUNK)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _decode_some(paths: Sequence[str], images: Tensor, size: tuple[int, int], first: int) -> None:
    some = paths[first : first + _CHUNK]
    decoded = [decode(path) for path in some]
    for path, image in zip(some, decoded, strict=True):
        if image.shape[:2] != size:
            raise SizesDifferError(f"{path} is {tuple(image.shape[:2])}, not {size}")
    height, width = images.shape[1:3]
    images[first : first + _CHUNK] = resize(torch.stack(decoded), height, width)
