"""One seed of the run becomes the seed of every random stream. Pure.

| stream | derived from |
|---|---|
| initial weights of the network | `derive(seed, "network")`: the same at any K |
| initial weights of a head | `derive(seed, "head", boundary)`: the same at any K |
| dropout and the like in a step | `derive(seed, "step", stage, replica, step)` |

`boundary` is the first segment behind the cut. Python's own `hash()` will not do: it differs
from process to process.
"""

from __future__ import annotations

import hashlib

_BITS = 63
"""`torch.manual_seed` and numpy's generators all take a seed of so many bits."""


def derive(seed: int, *parts: int | str) -> int:
    """A number in 0..2**63-1 that depends on `seed` and `parts` alone.

    Stable over processes, machines and versions of Python. Type, length and order of the
    parts count: (1, "2"), (1, 2), ("1", 2) and (12,) are all different.
    """
    return _number(_hash(seed, *parts))


class Seeds:
    """`derive(seed, *parts, last)` for one `last` after the other."""

    def __init__(self, seed: int, *parts: int | str) -> None:
        self._hash = _hash(seed, *parts)

    def at(self, last: int) -> int:
        digest = self._hash.copy()
        digest.update(_encode(last))
        return _number(digest)


def _hash(*parts: int | str) -> hashlib.blake2b:
    return hashlib.blake2b(b"".join(map(_encode, parts)), digest_size=8)


def _number(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big") >> (64 - _BITS)


def _encode(part: int | str) -> bytes:
    kind = "s" if isinstance(part, str) else "i"
    text = (part if isinstance(part, str) else str(int(part))).encode()
    return f"{kind}{len(text)}:".encode() + text
