"""Derivation of all random seeds of a run from the seed in the configuration.

| random stream | seed |
|---|---|
| initial weights of the network | `derive(seed, "network")`: the same for any K |
| initial weights of a head | `derive(seed, "head", boundary)`: the same for any K |
| dropout and other random operations of a step | `derive(seed, "step", stage, replica, step)` |

`boundary` is the index of the first segment after the cut. Python's `hash()` is not used,
because its values differ between processes.
"""

from __future__ import annotations

import hashlib

_BITS = 63
"""`torch.manual_seed` and the generators of numpy accept seeds of 63 bits."""


def derive(seed: int, *parts: int | str) -> int:
    """Derives a seed in 0..2**63-1 from `seed` and `parts`.

    The result is the same in every process, on every machine and in every Python version.
    Type, length and order of the parts matter: (1, "2"), (1, 2), ("1", 2) and (12,) give
    different seeds.
    """
    return _to_int(_hash(seed, *parts))


class Seeds:
    """A sequence of seeds: `Seeds(seed, *parts).at(i)` equals `derive(seed, *parts, i)`."""

    def __init__(self, seed: int, *parts: int | str) -> None:
        self._hash = _hash(seed, *parts)

    def at(self, last: int) -> int:
        digest = self._hash.copy()
        digest.update(_encode(last))
        return _to_int(digest)


def _hash(*parts: int | str) -> hashlib.blake2b:
    return hashlib.blake2b(b"".join(map(_encode, parts)), digest_size=8)


def _to_int(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "big") >> (64 - _BITS)


def _encode(part: int | str) -> bytes:
    """Encodes a part with its type and length, so that no two sequences collide."""
    kind = "s" if isinstance(part, str) else "i"
    text = (part if isinstance(part, str) else str(int(part))).encode()
    return f"{kind}{len(text)}:".encode() + text
