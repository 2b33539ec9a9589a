"""Tests of file trees: the same interface for folders and zip archives, content digests, and fetching."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaforge.data.trees import FolderTree, Tree, TreeImages, ZipTree, content_digest, fetch_tree, open_tree
from metaforge.errors import DataError

URL = "https://example.org/set.zip"


def files(level: int = 0) -> dict[str, bytes]:
    content = {}
    for row in "ab":
        for image in range(2):
            file = io.BytesIO()
            Image.new("1", (9, 9), int(row == "a")).save(file, "PNG", compress_level=level)
            content[f"set/{row}/{image}.png"] = file.getvalue()
    return content | {"set/readme.txt": b"hello"}


def as_zip(path: Path, content: dict[str, bytes], form: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", form) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def as_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path / "set"


@pytest.fixture
def trees(tmp_path: Path) -> list[Tree]:
    (tmp_path / "zipped").mkdir()
    as_zip(tmp_path / "zipped" / "set.zip", files())
    as_folder(tmp_path / "loose", files(9))
    opened = [open_tree(tmp_path / name, "set") for name in ("zipped", "loose")]
    return [tree for tree in opened if tree is not None]


def test_a_zip_and_a_folder_are_read_alike(trees: list[Tree], tmp_path: Path) -> None:
    assert [type(tree) for tree in trees] == [ZipTree, FolderTree]
    assert trees[0].names == trees[1].names == sorted(files())
    assert trees[0].read("set/readme.txt") == trees[1].read("set/readme.txt") == b"hello"
    assert content_digest(trees[0]) == content_digest(trees[1])
    assert open_tree(tmp_path, "set") is None
    for tree in trees:
        with pytest.raises(DataError):
            tree.read("set/none.png")


def test_the_content_digest_sees_names_and_pixels(tmp_path: Path) -> None:
    base = content_digest(ZipTree(as_zip(tmp_path / "a.zip", files(), zipfile.ZIP_DEFLATED)))
    content = files()
    content["set/a/0.png"] = content["set/b/0.png"]
    assert content_digest(ZipTree(as_zip(tmp_path / "b.zip", content))) != base
    content = files()
    content["set/a/3.png"] = content.pop("set/a/1.png")
    assert content_digest(ZipTree(as_zip(tmp_path / "c.zip", content))) != base


def test_the_stamp_changes_with_the_files(trees: list[Tree]) -> None:
    for tree in trees:
        assert tree.stamp() == type(tree)(tree.path).stamp()  # type: ignore[call-arg]
    before = [tree.stamp() for tree in trees]
    (trees[1].path / "readme.txt").write_bytes(b"hello, world")
    as_zip(trees[0].path, files(9))
    assert [type(tree)(tree.path).stamp() != stamp for tree, stamp in zip(trees, before, strict=True)] == [True, True]  # type: ignore[call-arg]


@pytest.mark.parametrize("invert", [False, True])
def test_images_are_decoded_on_access(trees: list[Tree], invert: bool) -> None:
    for tree in trees:
        places = [[(tree, f"set/{row}/{image}.png") for image in range(2)] for row in "ab"]
        source = TreeImages(places, 5, invert=invert)
        assert source.shape == (2, 2, 1, 5, 5)
        taken = source.take(np.array([0, 1, 0]), np.array([1, 0, 0]))
        assert taken.dtype == np.uint8
        assert taken.reshape(3, -1).mean(1).tolist() == ([0, 255, 0] if invert else [255, 0, 255])
        assert np.array_equal(source.all()[:, 0], taken[[0, 1]])


def test_images_can_be_in_colour(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (10, 20, 30)).save(file, "PNG")
    tree = ZipTree(as_zip(tmp_path / "set.zip", {"set/1.png": file.getvalue(), "set/2.png": file.getvalue()}))
    source = TreeImages([[(tree, "set/1.png"), (tree, "set/2.png")], [(tree, "set/1.png")]], 2, colour="rgb")
    assert source.shape == source.all().shape == (2, 2, 3, 2, 2)
    assert source.take(np.array([0]), np.array([1])).mean((0, 2, 3)).tolist() == [10, 20, 30]
    # The second row has no second image.
    assert source.all()[1].mean((1, 2, 3)).tolist() == [20, 0]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    content = files()
    content["set/a/0.png"] = content["set/a/0.png"][:40]
    for tree in (ZipTree(as_zip(tmp_path / "set.zip", content)), FolderTree(as_folder(tmp_path, content))):
        with pytest.raises(DataError, match=r"set/a/0\.png") as caught:
            content_digest(tree)
        assert str(tree.path) in caught.value.where


def test_fetching_keeps_intact_files_and_replaces_others(tmp_path: Path) -> None:
    served = as_zip(tmp_path / "served.zip", files()).read_bytes()
    content = content_digest(ZipTree(tmp_path / "served.zip"))
    urls: list[str] = []

    class Response(io.BytesIO):
        headers = Message()

    @contextmanager
    def opener(url: str) -> Iterator[Response]:
        urls.append(url)
        yield Response(served)

    def fetch(digest: str = content) -> Path:
        md5 = hashlib.md5(served, usedforsecurity=False).hexdigest()
        return fetch_tree(tmp_path / "data", "set", url=URL, md5=md5, content=digest, max_bytes=10**6, opener=opener)

    with pytest.raises(DataError, match="does not hold the expected images"):
        fetch("another digest")
    assert not list((tmp_path / "data").iterdir())
    path = fetch()
    assert path == tmp_path / "data" / "set.zip"
    assert path.read_bytes() == served
    as_zip(path, files(9), zipfile.ZIP_DEFLATED)
    assert fetch() == path
    assert len(urls) == 2
    path.write_bytes(served[:300])
    assert fetch() == path
    assert path.read_bytes() == served
    assert urls == [URL] * 3


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, files())
    (folder / "a" / "inside.png").symlink_to("0.png")
    assert "set/a/inside.png" in FolderTree(folder).names
    (folder / "a" / "outside.png").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="leads out of the folder") as caught:
        assert FolderTree(folder).names
    assert caught.value.where == str(folder / "a" / "outside.png")


def test_a_path_that_is_not_a_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, files())
    place = folder / "a" / "0.png"
    for put in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, lambda path: path.symlink_to("x")):
        place.unlink()
        put(place)
        with pytest.raises(DataError, match="cannot be read") as caught:
            FolderTree(folder).read("set/a/0.png")
        assert caught.value.where == str(place)
        if place.is_dir():
            place.rmdir()
            place.touch()
    with pytest.raises(DataError, match="cannot be read") as caught:
        FolderTree(folder).stamp()
    assert caught.value.where == str(place)
    with pytest.raises(DataError, match="cannot be read"):
        assert FolderTree(tmp_path / "none").names
    assert open_tree(tmp_path, "x" * 3000) is None
