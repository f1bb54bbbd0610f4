"""Measured time of the loader."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dglpipe.data import open_data
from dglpipe.data.batch_schedule import build_batch_schedule
from dglpipe.partition import profile_loader
from dglpipe.partition.profile_loader import loading_seconds
from harness.configs import make_config


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class SlowStart:
    """A data set with eight batches made ahead; every other batch takes 10 ms of `clock`."""

    workers = None

    def __init__(self, info, clock):
        self.info = info
        self.clock = clock
        self.closed = False

    def load(self):
        return self

    def batches(self, requests):
        for number, request in enumerate(requests):
            self.clock.now += 0.01 if number >= 8 else 0.0
            rows = len(request.indices)
            yield torch.zeros(rows, 1, 8, 8), torch.zeros(rows, dtype=torch.int64)

    def close(self):
        self.closed = True


def test_the_time_of_a_batch_is_measured_in_the_steady_state(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile_loader, "time", clock)
    config = make_config("epochs=2", "batch_size=64")
    source = SlowStart(open_data(config.data, config.seed).info, clock)
    plan = build_batch_schedule(config, source)  # a source that is its own data set
    assert plan.steps > 20
    assert loading_seconds(config, source, plan) == pytest.approx(0.01)
    assert source.closed
    assert loading_seconds(config, source, replace(plan, max_steps=1)) == 0.0, "one batch counts"
