"""Files that are written as a whole."""

from __future__ import annotations

import errno
import json
import os
import stat

import pytest
import torch

from dglpipe.files import write_json, write_whole
from dglpipe.pipeline.weights import save


def test_json_has_null_where_a_number_is_none(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [float("nan"), 1.0, (float("inf"), "nan", 3)]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"loss": [None, 1.0, [None, "nan", 3]]}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "one")
    write_whole(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "one" / "a.txt", "one")
        save(tmp_path / "one" / "a.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(item.stat().st_mode) for item in (tmp_path / "one").iterdir()]
    assert modes == [mode, mode]
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o777 & ~mask


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*a\.txt'"):
        write_whole(tmp_path / "a.txt", "new")
    assert [item.read_text() for item in tmp_path.iterdir()] == ["old"]
