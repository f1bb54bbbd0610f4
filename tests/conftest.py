"""What all tests share; the helpers are in `harness.py`."""

from __future__ import annotations

import pytest


@pytest.fixture
def run_dir(tmp_path):
    """A run directory that does not exist yet."""
    return tmp_path / "run"
