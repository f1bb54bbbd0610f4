"""Which process runs which stages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dglpipe.config import BackpropConfig, MethodConfig, PipelineConfig
from dglpipe.errors import ConfigError
from dglpipe.pipeline.topology import Layout
from dglpipe.runtime.plan import plan_layout


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3))
def test_every_stage_has_one_process_in_each_replica(stages, processes, replicas):
    layout = Layout(stages, min(stages, processes), replicas, 1)
    for replica in range(replicas):
        ranks = [layout.at(rank) for rank in range(layout.world_size)]
        own = [topology for topology in ranks if topology.replica == replica]
        assert [j for topology in own for j in topology.stages] == list(range(stages))
        assert own[0].is_first
        assert own[-1].is_last


def test_six_stages_on_four_processes():
    layout = Layout(6, 4, 1, 1)
    assert [list(layout.at(rank).stages) for rank in range(4)] == [[0, 1], [2, 3], [4], [5]]


def test_peers_run_the_same_stages():
    layout = Layout(2, 2, 3, 1)
    assert layout.at(3).peers() == [1, 3, 5]
    assert layout.at(3).name() == "rank 3 (stage 1 of replica 1)"


@pytest.mark.parametrize(
    ("rank", "local_rank", "local", "loaders"),
    [(0, 0, 6, 3), (5, 5, 6, 3), (3, 0, 3, 1), (4, 1, 3, 1), (1, 0, 1, 1)],
    ids=["one machine", "its last process", "the second", "of it", "a machine without stage 0"],
)
def test_replicas_with_stage_0_on_a_machine_load_there(rank, local_rank, local, loaders):
    assert Layout(2, 2, 3, 1).at(rank).loaders(local_rank, local) == loaders


@pytest.mark.parametrize(
    ("settings", "world", "expected"),
    [
        ({}, None, (2, 2, 1)),
        ({"stages": 4}, None, (4, 4, 1)),
        ({"stages": 4, "processes": 2}, None, (4, 2, 1)),
        ({}, 3, (3, 3, 1)),
        ({"replicas": 2}, 6, (3, 3, 2)),
        ({"stages": 5}, 2, (5, 2, 1)),
    ],
)
def test_omitted_keys_are_filled_in(settings, world, expected):
    layout = plan_layout(PipelineConfig(**settings), MethodConfig(), cores=8, world_size=world)
    assert (layout.stages, layout.processes, layout.replicas) == expected


def test_threads_share_the_cores_of_a_machine():
    assert plan_layout(PipelineConfig(), MethodConfig(), cores=8).threads == 4
    assert (
        plan_layout(PipelineConfig(), MethodConfig(), cores=8, world_size=8, local=4).threads == 2
    )
    assert plan_layout(PipelineConfig(stages=6), MethodConfig(), cores=2).threads == 1
    assert plan_layout(PipelineConfig(threads=3), MethodConfig(), cores=2).threads == 3


@pytest.mark.parametrize(
    ("settings", "world", "key"),
    [
        ({"stages": 2, "processes": 3}, None, "pipeline.processes"),
        ({"stages": 2}, 3, "pipeline.processes"),
        ({"processes": 2, "stages": 4}, 4, "pipeline.processes"),
        ({"replicas": 2}, 3, "pipeline.replicas"),
    ],
)
def test_an_impossible_layout(settings, world, key):
    with pytest.raises(ConfigError) as caught:
        plan_layout(PipelineConfig(**settings), MethodConfig(), cores=2, world_size=world)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("settings", "schedule", "world", "expected"),
    [
        ({}, None, None, (1, 1, 1, "chain")),
        ({"replicas": 3}, None, None, (1, 1, 3, "chain")),
        ({"replicas": 3}, None, 3, (1, 1, 3, "chain")),
        ({"stages": 3}, None, None, (3, 3, 1, "line")),
        ({}, "gpipe", None, (2, 2, 1, "line")),
        ({}, None, 4, (4, 4, 1, "line")),
        ({"processes": 3}, "interleaved_1f1b", None, (6, 3, 1, "loop")),
        ({"stages": 6, "processes": 2}, "interleaved_1f1b", None, (6, 2, 1, "loop")),
        ({"stages": 6}, "zbv", None, (6, 3, 1, "v")),
    ],
)
def test_backprop_has_one_stage_by_default(settings, schedule, world, expected):
    method = BackpropConfig(schedule=schedule)
    layout = plan_layout(PipelineConfig(**settings), method, cores=8, world_size=world)
    assert (layout.stages, layout.processes, layout.replicas, layout.placement) == expected


def test_a_pipeline_places_stages_as_its_schedule_wants_them():
    for placement, expected in (
        ("loop", [[0, 3], [1, 4], [2, 5]]),
        ("v", [[0, 5], [1, 4], [2, 3]]),
    ):
        layout = Layout(6, 3, 1, 1, placement)
        assert [list(layout.at(rank).stages) for rank in range(3)] == expected
    assert layout.at(1).name() == "rank 1 (stages 1, 4)"


@pytest.mark.parametrize(
    ("settings", "schedule", "key"),
    [
        ({"stages": 1}, "gpipe", "method.schedule"),
        ({"stages": 2, "replicas": 2}, None, "pipeline.replicas"),
        ({"stages": 4, "processes": 2}, "1f1b", "pipeline.stages"),
        ({"stages": 4, "processes": 1}, None, "pipeline.stages"),
        ({"stages": 5}, "zbv", "pipeline.stages"),
        ({"stages": 2}, "interleaved_1f1b", "pipeline.stages"),
        ({"stages": 5, "processes": 2}, "interleaved_1f1b", "pipeline.stages"),
        ({"stages": 1, "processes": 2}, None, "pipeline.processes"),
    ],
)
def test_an_impossible_pipeline(settings, schedule, key):
    with pytest.raises(ConfigError) as caught:
        plan_layout(PipelineConfig(**settings), BackpropConfig(schedule=schedule), cores=2)
    assert caught.value.key == key
