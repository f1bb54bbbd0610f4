import pytest

from dglpipe.monitoring import timers
from dglpipe.monitoring.timers import Kind, Timer, between, seconds, shares


def test_a_lap_gives_the_time_since_the_last_one(monkeypatch):
    clock = iter([100, 120, 160])
    monkeypatch.setattr(timers, "perf_counter_ns", lambda: next(clock))
    timer = Timer()
    timer.lap(0, Kind.LOADING)
    timer.lap(0, Kind.BUSY)
    assert timer.snapshot() == {(0, Kind.LOADING): 20, (0, Kind.BUSY): 40}


def test_shares_of_one_stage():
    spent = {
        (0, Kind.BUSY): 60,
        (0, Kind.WAIT_INPUT): 25,
        (0, Kind.LOGGING): 5,
        (0, Kind.OTHER): 10,
        (0, Kind.EVALUATING): 1000,
    }
    assert shares(spent, 0) == pytest.approx(
        {
            "busy_fraction": 0.6,
            "wait_input_fraction": 0.25,
            "wait_output_fraction": 0.0,
            "loading_fraction": 0.0,
            "logging_fraction": 0.05,
            "other_fraction": 0.1,
        }
    )


def test_a_stage_waits_while_its_process_works_on_another():
    spent = {(0, Kind.BUSY): 30, (1, Kind.BUSY): 60, (0, Kind.LOADING): 10}
    assert shares(spent, 1)["wait_input_fraction"] == pytest.approx(0.4)
    assert sum(shares(spent, 1).values()) == pytest.approx(1)
    assert shares(spent, 0)["wait_input_fraction"] == pytest.approx(0.6)


def test_a_window_is_the_difference_of_two_snapshots():
    start = {(0, Kind.BUSY): 100}
    end = {(0, Kind.BUSY): 300, (0, Kind.EVALUATING): 50, (0, Kind.LOADING): 100}
    assert between(start, end)[0, Kind.BUSY] == 200
    assert seconds(between(start, end)) == pytest.approx(300e-9)
