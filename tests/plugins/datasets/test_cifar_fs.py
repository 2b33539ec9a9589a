"""Tests of CIFAR-FS: the layouts that are read, complete copies, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

import image_trees
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge_plugins.datasets.cifar_fs import CIFARFS
from own_images import assert_complete, assert_no_download, assert_read, assert_suggestions, subject_of


@parametrize_with_checks([subject_of("cifar-fs")])
def test_it_passes_the_conformance_kit(subject: Subject, check: Check, tmp_path: Path) -> None:
    image_trees.write(tmp_path / "cifar-fs", image_trees.class_folders())
    check(subject.with_root(tmp_path))


def test_a_run_gets_the_customary_images_and_tasks(tmp_path: Path) -> None:
    assert_suggestions("cifar-fs", (3, 32, 32), tmp_path)


def test_missing_files_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    assert_no_download(
        CIFARFS, "https://github.com/bertinetto/r2d2", "https://www.cs.toronto.edu/~kriz/cifar.html", root=tmp_path
    )


def test_a_complete_copy_has_64_16_and_20_classes_of_600_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = assert_complete(CIFARFS, (64, 16, 20), 600, monkeypatch)
    assert data.facts("test") | {"classes": 20, "images": 12_000, "image size": 32} == data.facts("test")


@pytest.mark.parametrize("folder", ["", "cifar100/"])
def test_the_folders_and_lists_of_the_authors_are_read(folder: str, tmp_path: Path) -> None:
    files = image_trees.class_lists("splits/bertinetto/", "data")
    assert_read(CIFARFS, {folder + name: content for name, content in files.items()}, tmp_path)
