"""Layouts of an image folder, and the errors about others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dglpipe.data import image_index
from dglpipe.data.image_index import list_folder
from dglpipe.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n" + bytes(100) + b"IEND\xaeB`\x82"


def _fill(root: Path, *names: str, content: bytes = _PNG) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    _fill(tmp_path, "train/b/2.png", "train/b/10.png", "train/a/x.JPEG", "test/a/1.png")
    _fill(tmp_path, "test/b/1.gif", content=b"GIF89a" + bytes(10))
    return tmp_path


def _error(root) -> str:
    with pytest.raises(DataError) as caught:
        list_folder(str(root))
    return str(caught.value)


def test_sorted_by_class_then_by_name(root):
    found = list_folder(str(root))
    assert found.classes == ("a", "b")
    assert found.train.names == ("train/a/x.JPEG", "train/b/10.png", "train/b/2.png")
    assert found.train.sizes == (116,) * 3
    assert found.train.labels == (0, 1, 1)
    assert found.test.names == ("test/a/1.png", "test/b/1.gif")
    assert found.path(True, 2) == f"{root}/train/b/2.png"
    assert found.paths(False) == [f"{root}/test/a/1.png", f"{root}/test/b/1.gif"]


def test_val_goes_before_test(root):
    _fill(root, "val/a/5.webp", "val/b/6.webp", content=b"RIFF\x01\x02\x03\x04WEBPVP8 ")
    assert list_folder(str(root)).test.names == ("val/a/5.webp", "val/b/6.webp")


def test_ignored_files(root):
    before = list_folder(str(root))
    _fill(root, "train/a/.hidden.png", "train/a/notes.txt", "train/readme.png", ".git/a/1.png")
    _fill(root, "train/.cache/1.png", "train/a/folder.png/deep.png", content=b"")
    assert list_folder(str(root)) == before


def test_links_are_followed(root):
    (root / "train" / "a" / "link.png").symlink_to(root / "test" / "a" / "1.png")
    assert "train/a/link.png" in list_folder(str(root)).train.names


def test_fingerprint_follows_names_sizes_and_classes(root):
    prints = [list_folder(str(root)).fingerprint()]
    assert list_folder(str(root)).fingerprint() == prints[0]
    _fill(root, "train/a/x.JPEG", content=_PNG[:9] + _PNG[8:])
    prints.append(list_folder(str(root)).fingerprint())
    (root / "train/b/2.png").rename(root / "train/b/3.png")
    prints.append(list_folder(str(root)).fingerprint())
    for split in ("train", "test"):
        (root / split / "a").rename(root / split / "aa")
    prints.append(list_folder(str(root)).fingerprint())
    assert len(set(prints)) == 4


def test_the_path_of_the_folder_does_not_count(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "moved"
    before = list_folder(str(root)).fingerprint()
    root.rename(other)
    assert list_folder(str(other)).fingerprint() == before


def test_missing_root(tmp_path):
    missing = tmp_path / "none"
    expected = f"data.root={missing}: there is no folder {missing}; give the folder that contains"
    assert expected in _error(missing)


def test_root_that_is_a_file(tmp_path):
    _fill(tmp_path, "data.tar")
    assert "is a file, not a folder; extract the archive" in _error(tmp_path / "data.tar")


def test_no_train(tmp_path):
    assert "has no train/; found no folders; expected train/" in _error(tmp_path)
    _fill(tmp_path, "test/a/1.png", "images/1.png")
    assert f"data.root={tmp_path}: has no train/; found images, test;" in _error(tmp_path)


def test_no_test(root):
    (root / "test").rename(root / "holdout")
    assert "has no val/ or test/; found holdout, train;" in _error(root)


def test_no_classes(tmp_path):
    _fill(tmp_path, "train/1.png", "val/a/1.png")
    assert f"{tmp_path}/train has no folders; expected a folder of images for each" in _error(
        tmp_path
    )


def test_class_without_images(root):
    _fill(root, "train/b/deep/1.png", "train/c/1.bmp")
    message = _error(root)
    assert f"data.root={root}: class {root}/train/c has no images; add files" in message
    assert ".jpg, .jpeg, .png, .gif, .webp" in message


def test_class_that_cannot_be_listed(root, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "train/b cannot be listed: [Errno 13] Permission denied" in _error(root)


def test_broken_link(root):
    (root / "train" / "b" / "broken.png").symlink_to(root / "nowhere")
    assert "train/b cannot be listed:" in _error(root)


def test_classes_that_differ(root):
    _fill(root, "train/c/1.png", "train/d/1.png")
    assert "train/ has classes that are not in test/: c, d; both need the same" in _error(root)


def test_classes_only_of_the_test(root):
    _fill(root, *(f"test/{name}/1.png" for name in "cdefgh"))
    assert "test/ has classes that are not in train/: c, d, e, f, g, ...; both" in _error(root)


def test_file_that_is_no_image(root):
    _fill(root, "train/b/page.png", content=b"<html>" + bytes(100))
    message = _error(root)
    assert (
        f"{root}/train/b/page.png: is not a JPEG, PNG, GIF or WebP image (begins with b'<html>"
        in message
    )
    assert "remove or replace the file" in message


def test_empty_file(root):
    _fill(root, "test/b/empty.jpg", content=b"")
    assert f"{root}/test/b/empty.jpg: is not a JPEG, PNG, GIF or WebP image (is empty)" in _error(
        root
    )


def test_file_that_cannot_be_opened(root, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "train/a/x.JPEG: cannot be read (Permission denied)" in _error(root)


def test_of_a_great_many_files_evenly_spaced_and_small_ones_are_opened(root, monkeypatch):
    monkeypatch.setattr(image_index, "_MAX_CHECKED", 2)
    _fill(root, "train/b/10.png", content=bytes(100))  # the second of three
    list_folder(str(root))
    _fill(root, "train/b/10.png", content=bytes(63))
    assert "train/b/10.png: is not a JPEG" in _error(root)
