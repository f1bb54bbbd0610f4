"""Ranks with different configurations fail before they train."""

from __future__ import annotations

import dataclasses

import pytest

from dglpipe.data import open_data
from dglpipe.errors import ConsistencyError
from dglpipe.runtime.config_consistency import check_consistency
from harness.configs import layout, make_config
from harness.worlds import run_world


def agree(group, configs, other_data=None):
    rank = group.topology.rank
    config = configs[rank]
    data = open_data(config.data, config.seed).info
    if other_data == rank:
        data = dataclasses.replace(data, fingerprint="0" * 32)
    try:
        check_consistency(group, config, data, "gloo")
    except ConsistencyError as error:
        return str(error)
    return None


def test_equal_configurations_agree():
    assert run_world(layout(3), agree, [make_config()] * 3) == [None] * 3


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("seed=1", "seed", ("0", "1")),
        ("optimizer.lr=0.2", "optimizer.lr", ("0.05", "0.2")),
        ("model=cnn4", "model.name", ('"cnn6"', '"cnn4"')),
    ],
)
def test_every_rank_names_the_key_and_who_has_what(override, key, values):
    base, other = make_config("model=cnn6"), make_config("model=cnn6", override)
    messages = run_world(layout(3), agree, [base, other, base])
    assert len(set(messages)) == 1
    assert f"disagree about {key}: " in messages[0]
    assert f"ranks [0, 2] have {values[0]}" in messages[0]
    assert f"ranks [1] have {values[1]}" in messages[0]


def test_other_files_are_named():
    messages = run_world(layout(2), agree, [make_config()] * 2, 1)
    assert all("disagree about data listing" in text for text in messages)
