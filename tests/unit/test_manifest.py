"""Manifests: every kind of damage is found, and the file is named."""

from __future__ import annotations

import json

import pytest

from dglpipe.manifest import (
    DamageError,
    FileEntry,
    beside,
    read_manifest,
    read_suspect,
    write_manifest,
)


@pytest.fixture
def written(tmp_path):
    """A file and its entry."""
    content = bytes(range(256))
    (tmp_path / "a.bin").write_bytes(content)
    return tmp_path / "a.bin", FileEntry.of("a.bin", content)


def flip(path):
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "flipped": (flip, "sha256: got .*, the manifest has "),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:128]), "size: got 128 bytes"),
    "empty": (lambda path: path.write_bytes(b""), "size: got 0 bytes, the manifest has 256"),
    "deleted": (lambda path: path.unlink(), "the file is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_found_and_named(written, how):
    path, entry = written
    assert entry.read(path.parent) == path.read_bytes()
    entry.check(path.parent)
    damage, reason = DAMAGE[how]
    damage(path)
    for look in (entry.read, entry.check):
        with pytest.raises(DamageError, match=rf"a\.bin: {reason}"):
            look(path.parent)


@pytest.mark.parametrize("name", ["", "..", "../a.bin", "/etc/passwd"])
def test_an_entry_names_a_file_of_its_folder(tmp_path, name):
    with pytest.raises(DamageError, match="where the name of a file belongs"):
        FileEntry(name, 1, "0").read(tmp_path)


def test_an_entry_is_read_from_json(written):
    path, entry = written
    assert FileEntry.parse(path, {**entry.to_json(), "stage": 3}) == entry
    for wrong in (None, 7, [], {}, {**entry.to_json(), "size": "256"}, {"file": "a.bin"}):
        with pytest.raises(DamageError, match=r"a\.bin: got .* where an entry has file, size"):
            FileEntry.parse(path, wrong)


def test_a_manifest_gives_back_its_content(tmp_path):
    content = {"step": 3, "files": [{"file": "a", "size": 1, "sha256": "é"}]}
    write_manifest(tmp_path / "m.json", content)
    assert read_manifest(tmp_path / "m.json") == content
    assert len(json.loads((tmp_path / "m.json").read_text())["manifest_sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "the file is missing"),
        ("", "Expecting value"),
        ('{"step": 3', "Expecting"),
        ("[1]", "got list where a JSON object belongs"),
        ("{}", "not the one that was written"),
        ('{"step": 3}', "not the one that was written"),
        ("[" * 100000, "recursion"),
        ("\udcff", "codec can't decode"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, text, reason):
    path = tmp_path / "m.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DamageError, match=rf"m\.json: .*{reason}"):
        read_manifest(path)


def test_every_changed_value_of_a_manifest_is_found(tmp_path):
    path = tmp_path / "m.json"
    write_manifest(path, {"step": 3, "name": "a"})
    text = path.read_text()
    for old, new in (("3", "4"), ('"a"', '"b"'), ("name", "nama"), ("step", "stem")):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(DamageError, match="not the one that was written"):
            read_manifest(path)
        assert not read_suspect(path)[1]


def test_the_manifest_of_a_single_file_stands_beside_it(tmp_path):
    assert beside(tmp_path / "net.safetensors").name == "net.safetensors.manifest.json"
