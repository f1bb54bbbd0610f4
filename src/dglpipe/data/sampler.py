"""Batch order and the random numbers of augmentation, as pure functions of the seed.

There is no state: a run that resumes, or that has other cuts, sees the same batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dglpipe.seeds import derive

# Constants of splitmix64 (Steele, Lea and Flood, 2014) as signed integers: int64 arithmetic
# wraps, which equals the unsigned arithmetic modulo 2^64 of the algorithm.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_STRIDE = 64
"""Random numbers reserved for each image."""


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """Order of the training images in `epoch`: a permutation (size,) int64 of 0..size-1."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    return torch.randperm(size, generator=generator)


def uniform(seed: int, epoch: int, indices: Tensor, draws: int) -> Tensor:
    """Random numbers per image, independent of the batch that the image is in.

    Number d of image i is output 64 i + d of splitmix64, seeded by (seed, epoch).

    Args:
        seed: seed of the run.
        epoch: epoch, from 1.
        indices: (B,) int64, indices in the split.
        draws: random numbers per image, at most 64.

    Returns:
        (B, draws) float64 in [0, 1).
    """
    assert draws <= _STRIDE, "the random numbers of consecutive images would overlap"
    key = derive(seed, "augment", epoch)
    counter = torch.add(torch.arange(1, draws + 1), indices[:, None], alpha=_STRIDE)
    bits = counter.mul_(_GAMMA).add_(key)
    bits = (bits ^ _shift_right(bits, 30)).mul_(_FIRST)
    bits = (bits ^ _shift_right(bits, 27)).mul_(_SECOND)
    bits = bits ^ _shift_right(bits, 31)
    return _shift_right(bits, 11).to(torch.float64).mul_(2.0**-53)


def augmentation_draws(
    seed: int, epoch: int, indices: Tensor, draws: int, flip: str = "random"
) -> Tensor:
    """The random numbers (B, draws) of `uniform`, the last of which flips an image if it is below
    1/2.

    Args:
        flip: `random`, or `alternating`: an image is flipped in every second epoch, beginning with
            the first or the second at random.
    """
    found = uniform(seed, epoch, indices, draws)
    if flip == "alternating":
        first = uniform(seed, 1, indices, draws)[:, -1]
        found[:, -1] = first if epoch % 2 else (first + 0.5) % 1
    return found


def _shift_right(bits: Tensor, by: int) -> Tensor:
    # A logical shift: int64 shifts copy the sign bit, which is masked out.
    return (bits >> by) & ((1 << (64 - by)) - 1)
