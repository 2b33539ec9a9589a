"""Tests of tiered-ImageNet: the layouts that are read, complete copies, and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import image_trees
from metaforge.data import TreeImages
from metaforge.errors import DataError
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge_plugins.datasets.tiered_imagenet import TieredImageNet
from own_images import assert_complete, assert_no_download, assert_read, assert_suggestions, made, subject_of


@parametrize_with_checks([subject_of("tiered-imagenet")])
def test_it_passes_the_conformance_kit(subject: Subject, check: Check, tmp_path: Path) -> None:
    image_trees.write(tmp_path / "tiered-imagenet", image_trees.class_folders())
    check(subject.with_root(tmp_path))


def test_a_run_gets_the_customary_images_and_tasks(tmp_path: Path) -> None:
    assert_suggestions("tiered-imagenet", (3, 84, 84), tmp_path)


def test_missing_files_are_an_error_that_says_where_to_get_them(tmp_path: Path) -> None:
    assert_no_download(
        TieredImageNet, "https://www.image-net.org", "https://github.com/renmengye/few-shot-ssl-public", root=tmp_path
    )


def sizes(classes: int, total: int) -> list[int]:
    """Return numbers of images from 732 to 1,300 that add up to a total."""
    counts, rest = [732] * classes, total - 732 * classes
    for number in range(classes):
        counts[number] += min(rest, 568)
        rest -= min(rest, 568)
    return counts


def test_a_complete_copy_has_351_97_and_160_classes_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # The published numbers of images of the splits, a hundredth of which is read here.
    images = {"train": 448_695, "val": 124_261, "test": 206_209}
    contents = TieredImageNet.contents
    assert (sum(images.values()), contents.images) == (contents.total, (732, 1300))
    numbers = {split: sizes(contents.classes[split], count) for split, count in images.items()}
    assert {split: sum(counts) for split, counts in numbers.items()} == images
    assert not contents.problems({s: {str(i): [""] * n for i, n in enumerate(c)} for s, c in numbers.items()})
    small = {split: [count // 100 for count in counts] for split, counts in numbers.items()}
    total = sum(map(sum, small.values()))
    monkeypatch.setattr(TieredImageNet, "contents", replace(contents, images=(7, 13), total=total))
    data = assert_complete(TieredImageNet, (351, 97, 160), small, monkeypatch)
    assert data.facts("train") | {"classes": 351, "images per class": "7 to 13"} == data.facts("train")


def test_images_are_decoded_when_they_are_sampled(tmp_path: Path) -> None:
    assert_read(TieredImageNet, image_trees.class_lists("splits/"), tmp_path)
    root = tmp_path / "files"
    assert isinstance(made(TieredImageNet, root, complete=False).pool("test").images, TreeImages)
    assert not isinstance(made(TieredImageNet, root, complete=False, mode="memory").pool("test").images, TreeImages)


def test_its_pickles_are_refused(tmp_path: Path) -> None:
    image_trees.write(tmp_path / "tiered-imagenet", {"train_images_png.pkl": b""})
    with pytest.raises(DataError, match=r"train_images_png\.pkl is a pickle") as caught:
        made(TieredImageNet, tmp_path).pool("train")
    assert "tiered-imagenet/train/<class>/<image>.png" in caught.value.remedy
