"""The schedule of batches: training, evaluation, replicas, resumed runs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dglpipe.data.batch_schedule import Phase, spread
from dglpipe.errors import ConfigError
from harness.schedules import batch_schedule


@given(st.integers(0, 200), st.integers(1, 40))
def test_shares_differ_by_at_most_one_and_the_larger_come_first(count, parts):
    sizes = spread(count, parts)
    assert sum(sizes) == count
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def drawn(stream, **where):
    """T or E, index, first row, rows."""
    return [
        f"{'TEP'[item.phase]}{item.number}@{item.first}+{item.rows}"
        for item in stream.items(**where)
    ]


def test_the_drawing():
    """Two epochs of three batches, the last one uneven, each with an evaluation of two."""
    first = ["T1@0+4", "T2@4+4", "T3@8+2", "E1@0+3", "E2@3+2"]
    second = ["T4@0+4", "T5@4+4", "T6@8+2", "E3@0+3", "E4@3+2"]
    assert drawn(batch_schedule()) == first + second


def test_a_last_batch_of_one_row_is_left_out():
    stream = batch_schedule(train=9)
    assert stream.left_out == 1
    assert stream.steps_per_epoch == 2
    assert batch_schedule(train=10).left_out == 0
    assert batch_schedule(train=8).left_out == 0


def test_training_that_ends_inside_an_epoch_is_evaluated():
    assert drawn(batch_schedule(max_steps=4))[-3:] == ["T4@0+4", "E3@0+3", "E4@3+2"]


def test_evaluation_at_the_end_only():
    assert [item.phase for item in batch_schedule(evaluate_every=0).items()] == [
        Phase.TRAIN
    ] * 6 + [Phase.TEST] * 2


def test_probe_batches_are_drawn_in_parts_and_follow_the_evaluation():
    stream = batch_schedule(probe_every=3, probe=5)
    first = ["T1@0+4", "T2@4+4", "T3@8+2", "E1@0+3", "E2@3+2", "P1@0+3", "P2@3+2"]
    assert drawn(stream)[: len(first)] == first
    assert drawn(stream, done=3)[:4] == ["E1@0+3", "E2@3+2", "P1@0+3", "P2@3+2"]
    assert drawn(stream)[-2:] == ["P3@0+3", "P4@3+2"]
    assert [item.phase for item in stream.last_tests()] == [Phase.TEST] * 2


def test_the_rows_of_a_probe_batch_are_spread_over_the_test_split():
    stream = batch_schedule(test=9, probe_every=3, probe=5)
    items = [item for item in stream.items() if item.phase is Phase.PROBE][:2]
    assert [stream.probe_rows(item) for item in items] == [[0, 1, 3], [5, 7]]


def test_one_replica_has_all_rows_of_a_probe_batch():
    stream = batch_schedule(probe_every=3, probe=5, replicas=2)
    probed = [[item for item in stream.items(r) if item.phase is Phase.PROBE] for r in range(2)]
    assert sum(item.rows for item in probed[0]) == 5, "after step 3 of 4"
    assert max(item.rows for item in probed[0]) <= stream.largest_rows(Phase.TEST)
    assert probed[1] == []


def test_a_probe_batch_larger_than_the_test_split_is_refused():
    with pytest.raises(ConfigError, match=r"probe\.batch_size: got 6; allowed: at most the 5"):
        batch_schedule(probe_every=1, probe=6)
    assert batch_schedule(probe=6).probe == 6, "it is not used"


@pytest.mark.parametrize("done", range(7))
def test_a_resumed_schedule_is_the_rest_of_the_whole_schedule(done):
    whole, rest = drawn(batch_schedule()), drawn(batch_schedule(), done=done)
    assert whole[-len(rest) :] == rest
    assert sum(name.startswith("T") for name in rest) == 6 - done
    # The evaluation after the step of the checkpoint is repeated.
    assert rest[0].startswith("E" if done in (3, 6) else "T")


@given(
    st.integers(2, 60),
    st.integers(1, 20),
    st.integers(2, 20),
    st.integers(1, 20),
    st.integers(1, 3),
)
def test_replicas_share_the_rows_of_every_batch(train, test, batch, test_batch, replicas):
    if batch > train or batch < 2 * replicas:
        return
    stream = batch_schedule(
        train=train, test=test, batch_size=batch, test_batch_size=test_batch, replicas=replicas
    )
    for items in zip(*(stream.items(replica) for replica in range(replicas)), strict=True):
        assert len({(item.phase, item.number, item.total, item.ends_pass) for item in items}) == 1
        assert sum(item.rows for item in items) == items[0].total
        for item, following in itertools.pairwise(items):
            assert item.first + item.rows == following.first
        for item in items:
            assert item.rows <= stream.largest_rows(item.phase)
            assert item.phase is Phase.TEST or item.rows >= 2


def test_the_window_opens_after_ten_steps_or_a_quarter():
    assert batch_schedule(train=400, batch_size=4, epochs=1).warm_after(0) == 10
    assert batch_schedule(train=32, batch_size=4, epochs=1).warm_after(0) == 2


def test_the_window_of_a_resumed_run_opens_as_late_as_that_of_a_fresh_one():
    long = batch_schedule(train=400, batch_size=4, epochs=1)
    assert [long.warm_after(done) for done in (5, 50, 80, 98, 100)] == [15, 60, 85, 98, 100]


@pytest.mark.parametrize("settings", [{"batch_size": 11}, {"batch_size": 3, "replicas": 2}])
def test_a_batch_that_does_not_fit(settings):
    with pytest.raises(ConfigError, match="batch_size"):
        batch_schedule(**settings)


@given(st.integers(4, 30), st.integers(2, 4), st.integers(1, 3), st.none() | st.integers(1, 40))
def test_a_resumed_run_begins_as_scheduled(train, batch, epochs, most):
    stream = batch_schedule(train=train, batch_size=batch, epochs=epochs, max_steps=most)
    planned = [item for item in stream.items() if item.phase is Phase.TRAIN]
    assert [stream.fed(item.number) for item in planned] == planned
    later = [stream.fed(stream.steps + at) for at in range(1, 2 * stream.steps_per_epoch + 1)]
    assert {item.rows for item in later} <= {batch, train % batch}
    assert sum(item.rows for item in later) == 2 * (train - stream.left_out)


@given(st.integers(4, 30), st.integers(1, 4), st.integers(0, 2), st.none() | st.integers(1, 40))
def test_evaluations_are_found_by_their_step(train, epochs, every, most):
    stream = batch_schedule(train=train, epochs=epochs, evaluate_every=every, max_steps=most)
    planned = [item for item in stream.items() if item.phase is Phase.TEST]
    steps = range(1, stream.steps + 1)
    assert [item for step in steps for item in stream.tests_after(step)] == planned
    assert stream.last_test == planned[-1].number


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("more", [{}, {"max_steps": 4}, {"rounds": 2}, {"rounds": 3, "epochs": 5}])
def test_the_last_evaluation_before_a_step(every, more):
    stream = batch_schedule(evaluate_every=every, **more)
    tests = {item.step for item in stream.items() if item.phase is Phase.TEST}
    for step in range(stream.steps + 2):
        earlier = [one for one in tests if one < step]
        assert stream.last_evaluation_before(step) == max(earlier, default=0)
