"""Properties of a data set that every process knows without reading its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dglpipe.data.transforms import Normalisation
from dglpipe.errors import DataError


@dataclass(frozen=True)
class DataInfo:
    """Sizes, classes and image shape of a data set; equal in all processes of a run."""

    name: str
    """Name of the data set."""
    train: int
    """Number of training images."""
    test: int
    """Number of test images."""
    classes: tuple[str, ...]
    """Names of the N classes, by label."""
    channels: int
    """C of the images in a batch, after single-channel images are repeated."""
    height: int
    """H of the images in pixels."""
    width: int
    """W of the images in pixels."""
    fingerprint: str
    """Hash that differs between processes that see different files or settings."""
    pixels: Normalisation | None = None
    """How images in a batch were computed from pixels of 8 bits; None: the images of the data set
    are no such pixels."""

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> DataInfo:
        """Restores the result of `dataclasses.asdict` after a round trip through JSON.

        Raises:
            KeyError, TypeError: keys or values are wrong.
        """
        if not isinstance(known, Mapping):
            raise TypeError(f"data: {known!r} is not a mapping")
        pixels = known["pixels"]
        if pixels is not None:
            pixels = Normalisation(tuple(pixels["mean"]), tuple(pixels["std"]))
        return cls(**{**known, "classes": tuple(known["classes"]), "pixels": pixels})


def fingerprint(*parts: object) -> str:
    """Hash of `parts`: bytes as they are, other objects by their `repr`; 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part if isinstance(part, bytes) else repr(part).encode()
        # The length distinguishes ("ab", "c") from ("a", "bc").
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def resolve_channels(name: str, channels: int, wanted: int | None) -> int:
    """C of the images in a batch.

    Args:
        name: name of the data set, for errors.
        channels: channels of the stored images.
        wanted: channels that the network requires; None: any number.

    Raises:
        DataError: the numbers differ, and the images have more than one channel: only images of
            one channel can be repeated.
    """
    if wanted is None or wanted == channels or channels == 1:
        return channels if wanted is None else wanted
    raise DataError(
        f"data={name}: the images have {channels} channels, the network requires {wanted}; "
        f"choose a network for {channels} channels, or another data set"
    )
