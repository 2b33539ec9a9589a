"""Tests of the layouts of class folders: each is read alike, and every way in which one can be wrong is named."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import image_trees
from image_trees import SMALL, Files, write
from metaforge.data.class_layouts import Splits, find_classes
from metaforge.data.trees import open_tree
from metaforge.errors import DataError

LAYOUTS: dict[str, Files] = {
    "folders": image_trees.class_folders(),
    "csv": image_trees.csv_lists(),
    "csv in splits": image_trees.csv_lists("splits/"),
    "txt": image_trees.class_lists("splits/bertinetto/", "data"),
    "txt beside images": image_trees.class_lists(),
    "json": image_trees.json_lists(),
    "json in splits": image_trees.json_lists("splits/cub/"),
}


def found(folder: Path, files: Files, inner: str = "") -> tuple[str, Splits]:
    """Write files into `folder/set`, and return their layout and the classes that are found in them."""
    write(folder / "set", files)
    tree = open_tree(folder, "set")
    assert tree is not None
    layout, splits = find_classes(tree, "set", inner)
    return str(layout), splits


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_classes_and_images_in_the_same_order(name: str, tmp_path: Path) -> None:
    layout, splits = found(tmp_path, LAYOUTS[name])
    assert {split: list(classes) for split, classes in splits.items()} == {s: sorted(c) for s, c in SMALL.items()}
    for classes in splits.values():
        for klass, images in classes.items():
            assert [path.rpartition("/")[2] for path in images] == sorted(image_trees.images_of(klass))
            assert all((tmp_path / path).is_file() for path in images)
    expected = {"folders": "folders of splits", "csv": "images with train.csv, val.csv, test.csv"}
    assert layout == expected.get(name, layout)
    assert ("json" in layout) == name.startswith("json")


@pytest.mark.parametrize("prefix", ["set/", "", "archive/", "set/archive/"])
def test_a_zip_archive_may_have_the_top_folder_or_the_inner_one(prefix: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in image_trees.class_lists("splits/").items():
            archive.writestr(prefix + name, data)
    tree = open_tree(tmp_path, "set")
    assert tree is not None
    _, splits = find_classes(tree, "set", "archive")
    assert {split: sorted(classes) for split, classes in splits.items()} == {s: sorted(c) for s, c in SMALL.items()}


def test_lists_may_be_beside_the_inner_folder_or_in_it(tmp_path: Path) -> None:
    files = {("inner/" if name.startswith("images") else "") + name: d for name, d in image_trees.json_lists().items()}
    _, splits = found(tmp_path, files, "inner")
    assert len(splits["train"]) == 4
    with pytest.raises(DataError, match="is there twice") as caught:
        found(tmp_path, {"images/n1/n1_0.png": b""}, "inner")
    assert "inner" in caught.value.what


def test_hidden_files_and_files_elsewhere_are_ignored(tmp_path: Path) -> None:
    hidden = {
        ".DS_Store": b"",
        "train/.DS_Store": b"",
        "train/n1/._n1_0.png": b"",
        ".git/train/x": b"",
        "notes.md": b"",
    }
    plain = found(tmp_path / "a", image_trees.class_folders())
    assert found(tmp_path / "b", image_trees.class_folders() | hidden) == plain


def test_names_of_images_may_have_any_case_and_classes_any_number_of_images(tmp_path: Path) -> None:
    _, splits = found(tmp_path, {"train/a/1.JPEG": b"", "train/a/2.jpg": b"", "train/b/1.WebP": b""})
    assert {name: len(images) for name, images in splits["train"].items()} == {"a": 2, "b": 1}
    assert splits["val"] == splits["test"] == {}


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {path: data for path, data in files.items() if path != name}


def replaced(name: str, old: str, new: str) -> Callable[[Files], Files]:
    return lambda files: files | {name: files[name].replace(old.encode(), new.encode())}


def added(name: str, data: bytes = b"") -> Callable[[Files], Files]:
    return lambda files: files | {name: data}


def json_changed(**values: object) -> Callable[[Files], Files]:
    def change(files: Files) -> Files:
        return files | {"base.json": json.dumps(json.loads(files["base.json"]) | values).encode()}

    return change


WRONG: dict[str, tuple[str, Callable[[Files], Files], str, str]] = {
    # name: (layout, change, pattern of the message, word in the place or the remedy)
    "not an image": ("folders", added("train/n1/Thumbs.db"), r"train/n1/Thumbs\.db' is not an image", "remove"),
    "an image in no class": ("folders", added("val/x.png"), r"val/x\.png' is not an image val/<class>/<image>", "set"),
    "too deep": ("folders", added("test/n8/more/x.png"), "test/n8/more/x.png", "remove"),
    "shared class": ("folders", added("val/n1/x.png"), "1 classes are in both train and val, such as 'n1'", "one"),
    "csv: header": ("csv", replaced("val.csv", "filename,label", "class,image"), "the header is 'class,image'", "val"),
    "csv: cells": ("csv", replaced("val.csv", "n5_0.png,n5", "n5_0.png,"), "line 2 is", "val.csv"),
    "csv: three cells": ("csv", replaced("val.csv", "n5_0.png,n5", "n5_0.png,n5,1"), "line 2 is", "val.csv"),
    "csv: quotes": ("csv", replaced("val.csv", "n5_0.png,n5", '"n5"x,n5'), "line 2 is not valid", "val.csv"),
    "csv: missing": ("csv", without("images/n1_0.png"), "1 of the images .* such as 'images/n1_0.png'", "train.csv"),
    "csv: twice": ("csv", replaced("train.csv", "n1_1.png", "n1_0.png"), "n1_0.png' is listed twice", "train.csv"),
    "csv: two splits": ("csv", replaced("val.csv", "n5_0.png", "n1_0.png"), "n1_0.png' is listed twice", "val.csv"),
    "csv: shared class": ("csv", replaced("test.csv", "png,n8", "png,n1"), "both train and test", "one split"),
    "csv: outside": ("csv", replaced("val.csv", "n5_0.png", "../../n5_0.png"), "are missing", "val.csv"),
    "csv: no image": (
        "csv",
        lambda files: replaced("val.csv", "n5_0.png", "a.txt")(files) | {"images/a.txt": b""},
        "images/a.txt' is not an image",
        "val.csv",
    ),
    "csv: empty": ("csv", added("val.csv"), "the header is ''", "val.csv"),
    "csv: not text": ("csv", added("val.csv", b"\xff\xfe\x00"), "not UTF-8", "val.csv"),
    "txt: unknown": ("txt beside images", added("val.txt", b"n55\n"), r"'n55'\. Did you mean 'n5'\?", "val.txt"),
    "txt: twice": ("txt beside images", added("val.txt", b"n5\nn5\n"), "'n5' is listed twice", "val.txt"),
    "txt: shared": ("txt beside images", added("val.txt", b"n5\nn1\n"), "both train and val", "one split"),
    "txt: not an image": ("txt beside images", added("images/n5/a.txt"), "images/n5/a.txt' is not an image", "remove"),
    "txt: not a folder": ("txt beside images", added("val.txt", b"read.me"), "no images of the class", "val.txt"),
    "json: not JSON": ("json", added("base.json", b"{"), "not valid JSON", "base.json"),
    "json: too deep": ("json", added("base.json", b"[" * 10_000), "not valid JSON", "base.json"),
    "json: a list": ("json", added("base.json", b"[]"), "names, images and labels", "label_names"),
    "json: numbers": ("json", json_changed(label_names=[1, 2]), "names, images and labels", "label_names"),
    "json: label true": ("json", json_changed(image_labels=[True] * 24), "names, images and labels", "base.json"),
    "json: lengths": ("json", json_changed(image_labels=[1]), "names, images and labels", "base.json"),
    "json: label": ("json", json_changed(image_labels=[11] * 24), "has the label 11 of 11", "base.json"),
    "json: below 0": ("json", json_changed(image_labels=[-1] * 24), "has the label -1 of 11", "base.json"),
    "json: missing": ("json", without("images/n8/n8_0.png"), "such as 'images/n8/n8_0.png'", "novel.json"),
    "two lists": ("csv", added("splits/train.csv"), "2 layouts: images with splits/train.csv", "keep one"),
    "folders and lists": ("csv", added("train/n1/n1_0.png"), "2 layouts: folders of splits; images", "keep one"),
    "two folders of images": ("csv", added("data/x.png"), "2 layouts", "keep one"),
    "lists without images": ("csv", lambda f: {k: v for k, v in f.items() if "/" not in k}, "has test.csv", "images/"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    layout, change, message, word = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        found(tmp_path, change(LAYOUTS[layout]))
    assert str(tmp_path / "set") in caught.value.where
    assert word in f"{caught.value.where} {caught.value.remedy}"


def test_pickles_are_refused_by_name_and_never_read(tmp_path: Path) -> None:
    path = tmp_path / "set" / "set-cache-train.pkl"
    path.parent.mkdir()
    # Reading a named pipe would block the test.
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"set-cache-train\.pkl is a pickle; .* can run any code") as caught:
        found(tmp_path, {})
    assert "set/train/<class>/<image>.png" in caught.value.remedy


def test_pickles_beside_a_layout_are_ignored(tmp_path: Path) -> None:
    assert found(tmp_path, image_trees.class_folders() | {"train_labels.pkl": b"cos\nsystem\n"})[1]["train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [({}, "it has no files"), ({"set.tgz": b"", "a/b": b""}, r"it has a, set\.tgz"), ({"train": b""}, "it has train")],
)
def test_files_in_no_layout_are_listed_with_the_layouts_that_are_read(
    files: Files, message: str, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        found(tmp_path, files)
    assert all(word in caught.value.remedy for word in ("train/<class>/<image>", "filename,label", "base.json"))
