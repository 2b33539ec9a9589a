"""Tests of mini-ImageNet: the layouts that are read, complete copies, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

import image_trees
from metaforge.errors import DataError
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge_plugins.datasets.mini_imagenet import MiniImageNet
from own_images import assert_complete, assert_no_download, assert_read, assert_suggestions, made, subject_of


@parametrize_with_checks([subject_of("mini-imagenet")])
def test_it_passes_the_conformance_kit(subject: Subject, check: Check, tmp_path: Path) -> None:
    image_trees.write(tmp_path / "mini-imagenet", image_trees.class_folders())
    check(subject.with_root(tmp_path))


def test_a_run_gets_the_customary_images_and_tasks(tmp_path: Path) -> None:
    assert_suggestions("mini-imagenet", (3, 84, 84), tmp_path)


def test_missing_files_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    assert_no_download(
        MiniImageNet,
        "https://www.image-net.org",
        "https://github.com/twitter-research/meta-learning-lstm",
        root=tmp_path,
    )


def test_a_complete_copy_has_64_16_and_20_classes_of_600_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = assert_complete(MiniImageNet, (64, 16, 20), 600, monkeypatch)
    assert data.facts("val") | {"classes": 16, "images": 9600, "images per class": 600} == data.facts("val")


@pytest.mark.parametrize("lists", ["", "splits/", "splits/ravi-larochelle/"])
def test_the_lists_of_ravi_and_larochelle_are_read(lists: str, tmp_path: Path) -> None:
    assert_read(MiniImageNet, image_trees.csv_lists(lists), tmp_path)


def test_its_pickles_are_refused(tmp_path: Path) -> None:
    image_trees.write(tmp_path / "mini-imagenet", {"mini-imagenet-cache-train.pkl": b""})
    with pytest.raises(DataError, match=r"mini-imagenet-cache-train\.pkl is a pickle") as caught:
        made(MiniImageNet, tmp_path).pool("train")
    assert "mini-imagenet/train/<class>/<image>.png" in caught.value.remedy
