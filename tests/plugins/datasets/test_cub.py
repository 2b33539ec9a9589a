"""Tests of CUB-200-2011: the layouts that are read, complete copies, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

import image_trees
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge_plugins.datasets.cub import CUB
from own_images import assert_complete, assert_no_download, assert_read, assert_suggestions, subject_of


@parametrize_with_checks([subject_of("cub")])
def test_it_passes_the_conformance_kit(subject: Subject, check: Check, tmp_path: Path) -> None:
    image_trees.write(tmp_path / "cub", image_trees.class_folders())
    check(subject.with_root(tmp_path))


def test_a_run_gets_the_customary_images_and_tasks(tmp_path: Path) -> None:
    assert_suggestions("cub", (3, 84, 84), tmp_path)


def test_missing_files_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    assert_no_download(
        CUB,
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "https://github.com/wyharveychen/CloserLookFewShot",
        root=tmp_path,
    )


def test_a_complete_copy_has_100_50_and_50_classes_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # 11,788 images: 12 less than 200 times 59.
    sizes = {"train": [59] * 94 + [60] * 5 + [42], "val": [59] * 50, "test": [59] * 50}
    assert sum(map(sum, sizes.values())) == CUB.contents.total
    data = assert_complete(CUB, (100, 50, 50), sizes, monkeypatch)
    assert data.facts("train") | {"classes": 100, "images per class": "42 to 60"} == data.facts("train")


@pytest.mark.parametrize("lists", ["", "CUB_200_2011/", "splits/"])
def test_the_official_folder_is_read_with_lists_of_images_or_of_classes(lists: str, tmp_path: Path) -> None:
    other = {"attributes.txt": b"1", "CUB_200_2011/images.txt": b"1 a.jpg", "CUB_200_2011/classes.txt": b"1 a"}
    for number, layout in enumerate((image_trees.json_lists, image_trees.class_lists)):
        assert_read(CUB, layout(lists, "CUB_200_2011/images") | other, tmp_path / str(number))
