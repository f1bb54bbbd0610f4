"""The order of the images and the random numbers of each."""

from __future__ import annotations

import pytest
import torch

from dglpipe.data.sampler import augmentation_draws, epoch_order, uniform
from dglpipe.seeds import derive

_WORD = 2**64


def _splitmix64(seed: int, output: int) -> int:
    """Output number `output`, counted from 0, in plain integers."""
    bits = (seed + (output + 1) * 0x9E3779B97F4A7C15) % _WORD
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % _WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % _WORD
    return bits ^ (bits >> 31)


def test_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(3, 7, 1000)
    assert order.dtype is torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, epoch_order(3, 7, 1000))
    assert not torch.equal(order, epoch_order(3, 8, 1000))
    assert not torch.equal(order, epoch_order(4, 7, 1000))


def test_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    epoch_order(0, 1, 10)
    uniform(0, 1, torch.arange(4), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_order_has_no_preferred_places():
    places = torch.stack([epoch_order(0, epoch, 50).argsort() for epoch in range(400)])
    # The mean place of an image is 24.5, with a standard error of 0.72.
    assert (places.double().mean(0) - 24.5).abs().max() < 4 * 0.72


def test_the_reference_is_splitmix64():
    assert _splitmix64(0, 0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("index", [0, 1, 49_999, 2**40])
def test_uniform_is_splitmix64(index):
    key = derive(5, "augment", 2)
    expected = [(_splitmix64(key, 64 * index + draw) >> 11) * 2.0**-53 for draw in range(64)]
    assert uniform(5, 2, torch.tensor([index]), 64)[0].tolist() == expected


def test_uniform_does_not_depend_on_the_batch_or_the_number_of_draws():
    indices = epoch_order(0, 1, 500)
    whole = uniform(0, 1, indices, 23)
    assert whole.dtype is torch.float64
    assert whole.shape == (500, 23)
    for rows in (slice(0, 1), slice(17, 100), slice(499, 500)):
        assert torch.equal(uniform(0, 1, indices[rows], 23), whole[rows])
    assert torch.equal(uniform(0, 1, indices, 3), whole[:, :3])


def test_uniform_differs_by_seed_epoch_image_and_draw():
    indices = torch.arange(1000)
    numbers = torch.stack([uniform(s, e, indices, 8) for s in (0, 1) for e in (1, 2)])
    assert numbers.unique().numel() == numbers.numel()


def test_uniform_is_uniform_and_independent():
    numbers = uniform(0, 1, torch.arange(20_000), 4)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.flatten(), 20, 0, 1)
    # Chi squared of 19 degrees of freedom is above 43.8 once in a thousand.
    assert ((counts - 4000) ** 2 / 4000).sum() < 43.8
    neighbours = torch.cat((numbers[1:], numbers[:-1]), 1)
    correlation = torch.corrcoef(neighbours.T) - torch.eye(8)
    assert correlation.abs().max() < 0.03


def test_uniform_refuses_more_numbers_than_an_image_has():
    with pytest.raises(AssertionError, match="overlap"):
        uniform(0, 1, torch.arange(2), 65)


def test_alternating_flips_change_with_every_epoch():
    indices = torch.arange(1000)
    by_epoch = {
        epoch: augmentation_draws(7, epoch, indices, 3, "alternating") for epoch in (1, 2, 3, 4)
    }
    flipped = {epoch: draws[:, -1] < 0.5 for epoch, draws in by_epoch.items()}
    assert torch.equal(flipped[1], flipped[3]) and torch.equal(flipped[2], flipped[4])
    assert torch.equal(flipped[1], ~flipped[2])
    assert 400 < int(flipped[1].sum()) < 600
    for epoch, draws in by_epoch.items():  # the crops stay random
        assert torch.equal(draws[:, :2], uniform(7, epoch, indices, 3)[:, :2])
    assert torch.equal(augmentation_draws(7, 2, indices, 3), uniform(7, 2, indices, 3))
