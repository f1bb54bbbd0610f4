import itertools
from collections import Counter
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dglpipe.config import AsyncConfig
from dglpipe.data.batch_schedule import BatchItem, BatchSchedule
from dglpipe.methods.dgl_async.draw_order import DrawOrder
from harness.configs import in_test_all

RULES = st.sampled_from(("paper", "authors"))


def plan(steps=12, every=1):
    return BatchSchedule(12, 4, 3, 2, 1, steps, steps, every)


def simulated(**settings):
    return AsyncConfig(simulate=True, **settings)


@given(st.integers(1, 4), st.integers(1, 5), RULES, st.booleans(), st.integers(0, 9))
def test_a_read_batch_is_in_the_buffer(stages, size, rule, warm, seed):
    order = DrawOrder(simulated(buffer=size, read_rule=rule, warmup=warm), stages, plan(), seed)
    held = [[] for _ in range(stages)]
    updates = Counter()
    fed = 0
    for draw in order:
        if isinstance(draw, BatchItem):
            continue
        j = draw.stage
        if j == 0:
            fed += 1
            assert draw.read == fed
        else:
            assert draw.read in held[j - 1]
        if j < stages - 1:
            held[j].append(draw.written)
            if draw.replaced is not None:
                assert draw.replaced == held[j].pop(0)
            assert len(held[j]) <= size
        updates[j] += 1
    assert all(updates[j] >= 12 for j in range(stages))
    assert min(updates[j] for j in range(stages)) == 12


@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_an_evaluation_follows_when_all_stages_have_reached_it(stages, every, seed):
    sizes = plan(every=every)
    updates, seen = Counter(), []
    for event in DrawOrder(simulated(), stages, sizes, seed):
        if isinstance(event, BatchItem):
            assert min(updates[j] for j in range(stages)) == event.step
            seen.append(event)
        else:
            updates[event.stage] += 1
    assert seen == [item for step in range(1, 13) for item in sizes.tests_after(step)]


def test_it_begins_with_two_turns_of_each_stage():
    first = [draw.stage for draw in itertools.islice(DrawOrder(simulated(), 3, plan(), 0), 6)]
    assert first == [0, 0, 1, 1, 2, 2]
    method = simulated(order="sequential", warmup=False)
    order = (draw for draw in DrawOrder(method, 3, plan(), 0) if not isinstance(draw, BatchItem))
    assert [draw.stage for draw in order] == [0, 1, 2] * 12


@pytest.mark.parametrize("slow", range(4))
def test_a_slow_stage_has_fewer_draws(slow):
    factors = [2.0 if stage == slow else 1.0 for stage in range(4)]
    order = DrawOrder(simulated(slowdown=factors), 4, plan(3000, 0), 0)
    counts = Counter(draw.stage for draw in order if not isinstance(draw, BatchItem))
    quick = sum(counts[j] for j in range(4) if j != slow) / 3
    assert quick / counts[slow] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("after", [0, 1, 17, 36])
def test_a_resumed_run_has_the_remaining_draws(after):
    whole = list(DrawOrder(simulated(), 3, plan(), 0))
    at = 0
    for _ in range(after):
        at = next(at for at in range(at, len(whole)) if not isinstance(whole[at], BatchItem)) + 1
    resumed = DrawOrder(simulated(), 3, plan(), 0, after)
    assert list(resumed) == whole[at:]
    assert resumed.replays[0].usage.reads > 0


def mean_age(replay):
    return sum(age * count for age, count in replay.usage.ages.items()) / replay.usage.reads


def played(rule, size, slow=None, steps=8_000):
    """The buffers of six stages after a run."""
    factors = [2.0 if stage == slow else 1.0 for stage in range(6)]
    method = simulated(buffer=size, read_rule=rule, slowdown=factors)
    order = DrawOrder(method, 6, plan(steps, 0), 0)
    assert sum(1 for _ in order) >= 6 * steps
    return order.replays


@pytest.mark.parametrize(
    ("rule", "equal", "behind"), [in_test_all("paper", 3.2, 1.0), in_test_all("authors", 7.3, 24.8)]
)
def test_ages_follow_from_the_rules(rule, equal, behind):
    """M = 50, six workers; worked out from the definitions."""
    assert mean(map(mean_age, played(rule, 50))) == pytest.approx(equal, rel=0.05)
    slow = [mean_age(played(rule, 50, worker, 5_000)[worker - 1]) for worker in (1, 3, 5)]
    assert mean(slow) == pytest.approx(behind, rel=0.06)


def test_with_one_batch_half_of_the_reads_repeat_and_half_of_the_writes_are_never_read():
    for replay in played("paper", 1):
        assert replay.usage.repeats / replay.usage.reads == pytest.approx(0.5, abs=0.02)
        unread = replay.reads_by_entry()[0] / replay.usage.written
        assert unread == pytest.approx(0.5, abs=0.02)


def test_draws_without_a_readable_batch_are_counted():
    order = DrawOrder(simulated(max_reuse=1, slowdown=[4.0, 1.0]), 2, plan(400, 0), 0)
    events = [draw for draw in order if not isinstance(draw, BatchItem)]
    reads = Counter(draw.read for draw in events if draw.stage == 1)
    assert set(reads.values()) == {1}
    assert order.skipped[0] == 0
    assert order.skipped[1] > 400
