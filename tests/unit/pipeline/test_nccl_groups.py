"""Options of the process groups of links and replicas, without a GPU."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dglpipe.config import LinkConfig
from dglpipe.pipeline.device import Device
from dglpipe.pipeline.message import Direction
from dglpipe.pipeline.p2p import LINK_CTAS, link_options
from dglpipe.pipeline.process_group import ProcessGroup
from dglpipe.pipeline.topology import Layout

TIMEOUT = timedelta(seconds=77)
needs_nccl = pytest.mark.skipif(not dist.is_nccl_available(), reason="torch without NCCL")


class Asked:
    """Stands in for `dist.new_group` and records its arguments."""

    def __init__(self, monkeypatch):
        self.groups = []
        monkeypatch.setattr(dist, "new_group", self)
        # The transfers that warm a link up need a real group.
        monkeypatch.setattr("dglpipe.pipeline.process_group.warm_up", lambda *_, **__: None)

    def __call__(self, ranks, **how):
        self.groups.append((ranks, how))
        return f"group {ranks}"

    def connect(self, layout, rank, device, both_ways=False):
        group = ProcessGroup.alone(layout.at(rank))
        for direction in Direction if both_ways else [Direction.UP]:
            group._connect_links(device, TIMEOUT, False, LinkConfig(), direction)
        group._connect_replicas(device, TIMEOUT)
        return [ranks for ranks, _ in self.groups]


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


@needs_nccl
def test_links_hold_few_thread_blocks():
    options = link_options(TIMEOUT)
    assert isinstance(options, dist.ProcessGroupNCCL.Options)
    assert options.config.max_ctas == LINK_CTAS <= 8
    assert options.config.min_ctas <= LINK_CTAS
    assert options.is_high_priority_stream


@needs_nccl
def test_the_options_have_the_timeout_of_the_group():
    """torch warns about a difference and uses the timeout of the group."""
    assert link_options(TIMEOUT)._timeout == TIMEOUT


@needs_nccl
def test_links_are_connected_early_and_limited(asked):
    device = Device(torch.device("cuda", 1), "nccl")
    asked.connect(Layout(2, 2, 1, 1), 1, device)
    (_, how), *rest = asked.groups
    assert not rest
    assert how["backend"] == "nccl"
    assert how["timeout"] == TIMEOUT
    assert how["device_id"] == torch.device("cuda", 1)
    assert how["pg_options"].config.max_ctas == LINK_CTAS


@needs_nccl
def test_replicas_are_connected_early_and_not_limited(asked):
    device = Device(torch.device("cuda", 3), "nccl")
    asked.connect(Layout(2, 2, 2, 1), 3, device)
    ranks, how = asked.groups[-1]
    assert ranks == [1, 3]
    assert how["pg_options"] is None
    assert how["device_id"] == torch.device("cuda", 3)


def test_gloo_groups_have_no_options(asked):
    asked.connect(Layout(3, 3, 1, 1), 0, Device(torch.device("cpu"), "gloo"))
    for _, how in asked.groups:
        assert (how["backend"], how["pg_options"], how["device_id"]) == ("gloo", None, None)


@pytest.mark.parametrize("rank", range(6))
def test_every_rank_makes_all_groups_in_one_order(asked, rank):
    layout = Layout(3, 3, 2, 1)
    groups = asked.connect(layout, rank, Device(torch.device("cpu"), "gloo"))
    assert groups == [[0, 1], [1, 2], [3, 4], [4, 5], [0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("rank", range(3))
def test_each_direction_has_a_group_of_its_own(asked, rank):
    gloo = Device(torch.device("cpu"), "gloo")
    groups = asked.connect(Layout(3, 3, 1, 1), rank, gloo, both_ways=True)
    assert groups == [[0, 1], [1, 2]] * 2
