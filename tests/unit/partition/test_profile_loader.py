"""The loader as the stage in front of the first."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from dglpipe.data import open_data
from dglpipe.data.batch_schedule import build_batch_schedule
from dglpipe.partition.profile_loader import loading_seconds
from harness.configs import make_config


class SlowStart:
    """A data set that has made eight batches ahead, and makes another in 10 ms."""

    workers = None

    def __init__(self, info):
        self.info = info
        self.closed = False

    def load(self):
        return self

    def batches(self, requests):
        for number, request in enumerate(requests):
            time.sleep(0.01 if number >= 8 else 0.0)
            rows = len(request.indices)
            yield torch.zeros(rows, 1, 8, 8), torch.zeros(rows, dtype=torch.int64)

    def close(self):
        self.closed = True


def test_the_time_of_a_batch_is_that_of_the_steady_state():
    config = make_config("epochs=2", "batch_size=64")
    source = SlowStart(open_data(config.data, config.seed).info)
    plan = build_batch_schedule(config, source)  # a source that is its own data set
    assert plan.steps > 20
    assert 0.01 <= loading_seconds(config, source, plan) < 0.03
    assert source.closed
    assert loading_seconds(config, source, replace(plan, max_steps=1)) < 0.01, "one batch counts"
