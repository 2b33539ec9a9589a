"""Tests of the base class of data sets in class folders: complete copies, options, colours, the cache, and errors."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_trees
from image_trees import IMAGES, SMALL, write
from metaforge.authoring import TaskShape
from metaforge.data import ClassFolders, Contents, trees
from metaforge.errors import ConfigError, DataError
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.bench import difference

SHAPE = TaskShape(3, 1, 2)


class Small(ClassFolders):
    """Squares of one colour."""

    folder = "squares"
    inner = "official"
    contents = Contents({"train": 4, "val": 3, "test": 4}, images=(5, 6), total=66)
    source = "draw them"


def made(root: Path, **options: Any) -> Small:
    return Small(Small.Config(**{"size": 8, **options}), root=root)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "squares", image_trees.class_folders())
    return folder


@parametrize_with_checks(
    [Subject("dataset", f"squares, {m}", Small, options={"size": 8, "mode": m}) for m in ("memory", "on-demand")]
)
def test_a_subclass_passes_the_conformance_kit(subject: Subject, check: Check, root: Path) -> None:
    check(subject.with_root(root))


def test_images_are_in_colour_with_the_values_of_the_files(root: Path) -> None:
    for mode in ("memory", "on-demand"):
        pool = made(root, mode=mode).pool("train")
        assert pool.image_shape == (3, 8, 8)
        image = pool.take(np.array([1]), np.array([4]))[0]
        expected = np.asarray(Image.open(io.BytesIO(image_trees.picture("n2", 4))))
        assert np.array_equal(image, expected.transpose(2, 0, 1))


def test_images_are_resized(root: Path) -> None:
    assert made(root, size=16).sample("test", SHAPE, 0, 2, seed=0).query.x.shape == (2, 6, 3, 16, 16)
    assert made(root, size=84, mode="on-demand").spec("test", SHAPE).x_shape == (3, 84, 84)


def test_every_layout_archive_and_mode_gives_the_same_tasks(root: Path, tmp_path: Path) -> None:
    expected = made(root).sample("train", SHAPE, 0, 5, seed=1)
    layouts = [
        image_trees.class_folders(),
        image_trees.csv_lists("splits/"),
        image_trees.class_lists(),
        image_trees.json_lists(images="official/images"),
    ]
    for number, files in enumerate(layouts):
        folder = write(tmp_path / str(number) / "squares", files)
        for mode in ("memory", "on-demand"):
            assert not difference(expected, made(folder.parent, mode=mode).sample("train", SHAPE, 0, 5, seed=1))
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
            for name, data in files.items():
                archive.writestr(f"squares/{name}", data)
        shutil.rmtree(folder)
        assert not difference(expected, made(folder.parent).sample("train", SHAPE, 0, 5, seed=1))


def test_facts_and_names_do_not_read_images(tmp_path: Path) -> None:
    write(tmp_path / "squares", dict.fromkeys(image_trees.class_folders(), b"damaged"))
    data = made(tmp_path)
    assert data.facts("test") == {
        "classes": 4,
        "images": 24,
        "images per class": 6,
        "image size": 8,
        "layout": "folders of splits",
    }
    assert data.class_names("train") == SMALL["train"]
    assert data.training_classes() == 4
    with pytest.raises(DataError, match="not an intact image") as caught:
        data.pool("train")
    assert "squares/train/n1/n1_0.png" in caught.value.where


def test_classes_of_different_sizes(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", image_trees.class_folders())
    for name in ("n3_5", "n3_4", "n3_3", "n1_0"):
        (folder / "train" / name[:2] / f"{name}.png").unlink()
    for mode in ("memory", "on-demand"):
        data = made(tmp_path, mode=mode, complete=False)
        assert data.class_sizes("train") == [5, 6, 3, 6]
        assert data.facts("train") | {"images": 20, "images per class": "3 to 6"} == data.facts("train")
        # A task of four images of each class has no room for the class of three.
        tasks = data.sample("train", TaskShape(3, 2, 2), 0, 50, seed=0)
        assert set(tasks.classes.unique().tolist()) == {0, 1, 3}
        # No image that was filled in, which would be black.
        assert (tasks.support.x.flatten(2).amax(-1) > 0).all()


@pytest.mark.parametrize(
    ("remove", "problem"),
    [
        ("train/n4", "3 train classes, not 4"),
        ("val", "0 val classes, not 3"),
        ("test/n8/n8_0.png test/n8/n8_1.png", "4 images of the test class 'n8', not 5 to 6"),
        ("test/n8/n8_0.png", "65 images in all splits, not 66"),
        ("train/n4 val/n5 test/n8 test/n9/n9_0.png test/n9/n9_1.png", "; and 1 more"),
    ],
)
def test_a_copy_that_is_not_complete_is_refused_unless_that_is_meant(remove: str, problem: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", image_trees.class_folders())
    for name in remove.split():
        (shutil.rmtree if (folder / name).is_dir() else os.remove)(folder / name)
    for split in SMALL:
        with pytest.raises(DataError, match=problem) as caught:
            made(tmp_path).pool(split)
        assert str(folder) in caught.value.where
        assert "dataset.complete=false" in caught.value.remedy
        assert "draw them" in caught.value.remedy
    assert len(made(tmp_path, complete=False).class_names("train")) in (3, 4)


def test_superfluous_classes_and_images_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", image_trees.class_folders())
    write(folder, {"train/n1/x.png": b""})
    with pytest.raises(DataError, match="7 images of the train class 'n1', not 5 to 6"):
        made(tmp_path).pool("test")
    write(folder, {"val/n12/x.png": b""})
    with pytest.raises(DataError, match="4 val classes, not 3"):
        made(tmp_path).pool("test")


def test_a_split_without_classes_is_refused_when_it_is_used(tmp_path: Path) -> None:
    write(tmp_path / "squares", image_trees.class_folders({"test": SMALL["test"]}))
    data = made(tmp_path, complete=False)
    assert data.spec("test", SHAPE).classes == 0
    with pytest.raises(DataError, match="there are no train classes") as caught:
        data.pool("train")
    assert str(tmp_path / "squares") in caught.value.where


def test_unknown_splits_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        made(root).facts("trian")


def test_missing_data_and_fetching_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder squares and no squares\.zip") as missing:
        made(tmp_path).pool("train")
    with pytest.raises(DataError, match="squares cannot be fetched") as fetched:
        Small.fetch(tmp_path)
    for caught in (missing, fetched):
        assert str(tmp_path) in caught.value.where
        assert caught.value.remedy.startswith(f"draw them. Put the files into the folder {tmp_path / 'squares'}")
        assert "train/<class>/<image>" in caught.value.remedy
        assert "METAFORGE_DATA" in caught.value.remedy


def test_only_training_images_are_moved(root: Path) -> None:
    for options in ({"shift": 0.3}, {"tilt": 45.0}):
        still, moved = made(root), made(root, **options)
        assert difference(still.sample("train", SHAPE, 0, 2, seed=0), moved.sample("train", SHAPE, 0, 2, seed=0))
        for split in ("val", "test"):
            assert not difference(still.sample(split, SHAPE, 0, 2, seed=0), moved.sample(split, SHAPE, 0, 2, seed=0))


def test_the_cache_is_used_until_files_or_options_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "squares", image_trees.class_folders())
    first = made(tmp_path).pool("test").images
    reads, decode = 0, trees.decode_image

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return decode(*arguments, **options)

    monkeypatch.setattr(trees, "decode_image", counted)
    assert np.array_equal(np.asarray(made(tmp_path).pool("test").images), np.asarray(first))
    assert reads == 0
    made(tmp_path, resample="box").pool("test")
    assert reads == 4 * IMAGES
    (folder / "test" / "n8" / "n8_0.png").write_bytes(image_trees.picture("other", 5, size=9))
    changed = made(tmp_path).pool("test").images
    assert reads == 8 * IMAGES
    assert not np.array_equal(np.asarray(changed), np.asarray(first))


def test_lists_that_choose_other_classes_do_not_read_a_stale_cache(tmp_path: Path) -> None:
    folder = write(tmp_path / "squares", image_trees.class_lists())
    made(tmp_path).pool("val")
    # Other lists of the same lengths and times: only the files that they choose differ.
    for name, text in (("val.txt", b"n1\nn2\nn3\n"), ("train.txt", b"n4\nn5\nn6\nn7\n")):
        status = (folder / name).stat()
        assert len(text) == status.st_size
        (folder / name).write_bytes(text)
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    pool = made(tmp_path).pool("val")
    assert np.array_equal(
        pool.take(np.array([0]), np.array([0])),
        made(tmp_path, mode="on-demand").pool("val").take(np.array([0]), np.array([0])),
    )
