"""Measures the time that the loader needs for a batch."""

from __future__ import annotations

import time

import torch

from dglpipe.config import Config
from dglpipe.data import DataSet
from dglpipe.data.batch_schedule import BatchSchedule, Phase
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.inputs import DataInputs

FEWEST, MOST_BATCHES = 8, 200
ENOUGH_S = 3.0


def loading_seconds(config: Config, data: DataSet, plan: BatchSchedule) -> float:
    """Measures the seconds per batch of the loader of one replica. Closes `data`.

    Takes batches as fast as they arrive. The first half of the batches is not counted, since it
    includes the start of the decoding processes and batches that were loaded ahead.
    """
    items = (item for item in plan.items() if item.phase is Phase.TRAIN)
    device = Device(torch.device("cpu"), "gloo")
    count = min(MOST_BATCHES, plan.steps)
    feed = DataInputs(data, plan, items, config.seed, device)
    times = [time.perf_counter()]
    try:
        # The first batch waits for the decoding processes to start.
        while len(times) <= count and (len(times) < FEWEST or times[-1] - times[1] < ENOUGH_S):
            feed.take()
            times.append(time.perf_counter())
    finally:
        feed.close()
    counted = times[(len(times) - 1) // 2 :]
    return (counted[-1] - counted[0]) / (len(counted) - 1)
