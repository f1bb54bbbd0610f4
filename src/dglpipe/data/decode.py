"""Image files to pixels; the only module that knows the decoder."""

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
_MOST_THREADS = 8


class SizesDifferError(Exception):
    """Two images that were to be equal in size are not."""


def decode(path: str) -> Tensor:
    """An image file as (H,W,3) uint8; gray is repeated, alpha dropped, an animation cut
    down to its first frame, 16 bits to the upper 8.

    Raises:
        DataError: a file that cannot be read or decoded.
    """
    try:
        content = _read(path)
        _require_whole_png(content)
        image: Tensor = decode_image(torch.frombuffer(content, dtype=torch.uint8), _RGB)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be decoded as an image ({reason}); remove or replace it"
        ) from error
    if image.dim() == 4:
        image = image[0]
    if image.dtype is torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image.permute(1, 2, 0)


_PNG = b"\x89PNG\r\n\x1a\n"


def _require_whole_png(content: bytearray) -> None:
    """Raises ValueError for a PNG file with a damaged chunk, which can crash the decoder."""
    if not content.startswith(_PNG):
        return
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        size = int.from_bytes(content[at : at + 4], "big")
        kind, end = bytes(content[at + 4 : at + 8]), at + 8 + size
        told = int.from_bytes(content[end : end + 4], "big")
        if end + 4 > len(content) or zlib.crc32(memoryview(content)[at + 4 : end]) != told:
            raise ValueError(f"PNG chunk {kind!r} at byte {at} is damaged")
        at = end + 4


def decode_all(paths: Sequence[str], size: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Decodes images that are all of `size`, in threads, and brings them to `target`.

    Args:
        paths: n files.
        size: height and width of every image.
        target: height and width to interpolate to.

    Returns:
        (n,H,W,3) uint8, with H and W of `target`.

    Raises:
        DataError: a file that cannot be decoded.
        SizesDifferError: an image of another size.
    """
    images = torch.empty((len(paths), *target, 3), dtype=torch.uint8)
    fill = partial(_decode_some, paths, images, size)
    # Decoding releases the interpreter's lock, so threads do it without copying.
    pool = ThreadPoolExecutor(min(_MOST_THREADS, cores()))
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


def _read(path: str) -> bytearray:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half the time of Path.open
        return bytearray(file.read())
