"""Files that are written as a whole."""

from __future__ import annotations

import json

from dglpipe.files import write_json, write_whole


def test_json_has_null_where_a_number_is_none(tmp_path):
    write_json(tmp_path / "a.json", {"loss": [float("nan"), 1.0, (float("inf"), "nan", 3)]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"loss": [None, 1.0, [None, "nan", 3]]}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "a.txt", "one")
    write_whole(tmp_path / "a.txt", "two")
    assert (tmp_path / "a.txt").read_text() == "two"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]
