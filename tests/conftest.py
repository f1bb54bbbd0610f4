"""Fixtures of all tests; the helpers are in `harness`."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory):
    """The record of the user's own runs is in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def run_dir(tmp_path):
    """A run directory that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def start(tmp_path):
    """Starts programs, each in its own folder; fails if one of their processes is left."""
    from harness.commands import Command  # loads torch, which not every test needs

    commands = []

    def start_command(*words, **environment):
        folder = tmp_path / f"command_{len(commands)}"
        commands.append(Command(words, folder, environment))
        return commands[-1]

    yield start_command
    left = [pid for command in commands for pid in command.kill()]
    assert left == [], "the program left processes"
