"""Tests of FC100: the layouts that are read, complete copies, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

import image_trees
from metaforge.errors import DataError
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge_plugins.datasets.fc100 import FC100
from own_images import assert_complete, assert_no_download, assert_read, assert_suggestions, made, subject_of


@parametrize_with_checks([subject_of("fc100")])
def test_it_passes_the_conformance_kit(subject: Subject, check: Check, tmp_path: Path) -> None:
    image_trees.write(tmp_path / "fc100", image_trees.class_folders())
    check(subject.with_root(tmp_path))


def test_a_run_gets_the_customary_images_and_tasks(tmp_path: Path) -> None:
    assert_suggestions("fc100", (3, 32, 32), tmp_path)


def test_missing_files_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    assert_no_download(
        FC100, "https://github.com/ElementAI/TADAM", "https://www.cs.toronto.edu/~kriz/cifar.html", root=tmp_path
    )


def test_a_complete_copy_has_60_20_and_20_classes_of_600_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data = assert_complete(FC100, (60, 20, 20), 600, monkeypatch)
    assert data.facts("train") | {"classes": 60, "images": 36_000, "image size": 32} == data.facts("train")


def test_lists_of_classes_are_read_too(tmp_path: Path) -> None:
    assert_read(FC100, image_trees.class_lists("splits/"), tmp_path)


def test_its_pickles_are_refused(tmp_path: Path) -> None:
    image_trees.write(tmp_path / "fc100", {"FC100_train.pickle": b""})
    with pytest.raises(DataError, match=r"FC100_train\.pickle is a pickle") as caught:
        made(FC100, tmp_path).pool("train")
    assert "fc100/train/<class>/<image>.png" in caught.value.remedy
