"""What every process knows of a data set without reading its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dglpipe.errors import DataError


@dataclass(frozen=True)
class DataInfo:
    """Sizes, classes and shape of a data set; equal in all processes of a run."""

    name: str
    train: int
    """Images of the training split."""
    test: int
    classes: tuple[str, ...]
    channels: int
    """C of the images that `batches` gives, after gray has been repeated."""
    height: int
    width: int
    fingerprint: str
    """Hash of the listing: processes that see other files have another one."""


def fingerprint(*parts: object) -> str:
    """32 hexadecimal digits, a function of the `repr` of `parts`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = part if isinstance(part, bytes) else repr(part).encode()
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()


def given_channels(name: str, channels: int, wanted: int | None) -> int:
    """C of the images that a network gets which wants `wanted` channels (None: any).

    Raises:
        DataError: only one channel can be made into others, by repeating it.
    """
    if wanted is None or wanted == channels or channels == 1:
        return channels if wanted is None else wanted
    raise DataError(
        f"data={name}: the images have {channels} channels, the network wants {wanted}; "
        "choose a network for that many channels, or other data"
    )
