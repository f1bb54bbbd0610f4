"""Files that are written as a whole."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch

from dglpipe.errors import RunFailedError, StorageError
from dglpipe.files import name_of_part, replacing, try_write_json, write_json, write_whole
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


def test_a_full_disk_names_the_file_and_leaves_no_part(tmp_path):
    write_whole(tmp_path / "a.txt", "one")
    with pytest.raises(StorageError) as caught, replacing(tmp_path / "a.txt") as part:
        part.write_text("tw")
        raise OSError(errno.ENOSPC, "full")
    assert str(caught.value) == f"No space left on device: {tmp_path}/a.txt"
    assert caught.value.hint.startswith("free space")
    assert isinstance(caught.value.__cause__, OSError)
    assert (tmp_path / "a.txt").read_text() == "one"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["gone/below/a.json", "file/a.json"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFailedError, match=rf"(No such file|Not a dir|exists).*: {tmp_path}/{name}"
    ):
        write_json(tmp_path / name, {})
    assert not try_write_json(tmp_path / name, {})
    assert try_write_json(tmp_path / "new" / "a.json", {})


def test_an_error_of_the_body_is_not_changed(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as part:
        part.write_text("a")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_storage_error_passes_between_processes():
    cause = OSError(errno.EROFS, "read-only")
    error = pickle.loads(pickle.dumps(StorageError("run/a", cause)))
    assert str(error) == "Read-only file system: run/a"
    assert error.hint == StorageError("b", cause).hint
    assert str(StorageError("run/a", OSError("no errno"))) == "no errno: run/a"


@pytest.mark.parametrize(
    ("name", "of"),
    [
        (".config.yaml.17", "config.yaml"),
        ("config.yaml.17", None),
        (".lock", None),
        (".config.yaml.old", None),
    ],
)
def test_part_files_are_recognized(name, of):
    assert name_of_part(Path("run") / name) == of
