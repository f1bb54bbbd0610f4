import math

import pytest

from dglpipe.config import SCHEDULES, TriangleConfig
from dglpipe.pipeline.lr_schedule import rate_factor


def factors(config, steps=20, per_epoch=5):
    return [rate_factor(config, step, steps, per_epoch) for step in range(1, steps + 1)]


def test_constant():
    assert set(factors(SCHEDULES["constant"]())) == {1.0}


def test_step_drops_every_so_many_epochs():
    values = factors(SCHEDULES["step"](every=2, factor=0.5))
    assert values == [1.0] * 10 + [0.5] * 10


def test_multistep_drops_after_each_milestone():
    values = factors(SCHEDULES["multistep"](milestones=[1, 3], factor=0.1))
    assert values == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)


def test_cosine_starts_at_one_and_nears_its_end():
    values = factors(SCHEDULES["cosine"](final=0.1))
    assert values[0] == 1.0
    assert values == sorted(values, reverse=True)
    assert values[10] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert 0.1 < values[-1] < 0.11


@pytest.mark.parametrize("name", ["constant", "step", "multistep", "cosine"])
def test_warm_up_rises_in_even_steps_to_the_full_rate(name):
    values = factors(SCHEDULES[name](warmup_steps=4))
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_triangle_rises_and_falls_linearly():
    found = factors(TriangleConfig(start=0.2, peak=0.25, final=0.1), 8)
    assert found == pytest.approx([0.2, 0.6, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25])
    assert factors(TriangleConfig(peak=0.0, final=0.0), 4) == [1.0, 0.75, 0.5, 0.25]
