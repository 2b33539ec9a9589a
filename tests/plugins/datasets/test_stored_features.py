"""Stored features: tasks of the vectors in the file, classes of different sizes, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaforge.authoring.protocols import TaskShape
from metaforge.errors import DataError
from metaforge_plugins.datasets.stored_features import StoredFeatures

SIZES = np.array([3, 2, 4])


def arrays(**changes: Any) -> dict[str, Any]:
    """Return arrays of 9 images of 3 classes, of which image i has the features (i, i + ½)."""
    rows = np.arange(9, dtype=np.float32)[:, None] + np.array([0, 0.5], dtype=np.float32)
    found = {"train.features": rows, "train.sizes": SIZES, "train.names": np.array(["a", "b", "c"])}
    return {**found, "about": np.array('{"run": "runs/x", "step": 7}'), **changes}


def opened(folder: Path, *, standardise: bool = False, **changes: Any) -> StoredFeatures:
    np.savez(folder / "f.npz", **arrays(**changes))
    return StoredFeatures(StoredFeatures.Config(file=str(folder / "f.npz"), standardise=standardise), root=folder)


def test_a_task_has_the_vectors_of_its_classes(tmp_path: Path) -> None:
    dataset, shape = opened(tmp_path), TaskShape(2, 1, 1)
    assert dataset.spec("train", shape).x_shape == (2, 1, 1)
    assert dataset.class_sizes("train") == [3, 2, 4]
    owner, seen = np.repeat(np.arange(3), SIZES), set()
    batch = dataset.sample("train", shape, 0, 50, seed=0)
    assert batch.support.x.dtype == torch.float32
    for number in range(50):
        for part in (batch.support, batch.query):
            for x, y in zip(part.x[number].flatten(1), part.y[number], strict=True):
                image = int(x[0])
                assert x.tolist() == [image, image + 0.5]
                assert owner[image] == batch.classes[number][y]
                seen.add(image)
        assert not {*batch.support.x[number, :, 0].flatten().tolist()} & {
            *batch.query.x[number, :, 0].flatten().tolist()
        }
    assert seen == set(range(9))


def test_features_are_standardised_by_those_of_the_training_split(tmp_path: Path) -> None:
    rows = np.array([[1, 5], [3, 5], [5, 5], [7, 5]], dtype=np.float32)
    sizes, names = np.array([2, 2]), np.array(["a", "b"])
    others = {"train.features": rows, "train.sizes": sizes, "train.names": names}
    others |= {"test.features": rows + 1, "test.sizes": sizes, "test.names": names}
    dataset = opened(tmp_path, standardise=True, **others)
    found = {
        split: dataset.pool(split).take(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) for split in ("train", "test")
    }
    expected = (rows[:, 0] - 4) / np.sqrt(5)
    np.testing.assert_allclose(found["train"][:, 0, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found["test"][:, 0, 0, 0], expected + 1 / np.sqrt(5), rtol=1e-6)
    # The second feature is the same in all training images.
    assert (found["train"][:, 1] == 0).all()
    assert (found["test"][:, 1] == 1).all()
    without = {name: value for name, value in others.items() if not name.startswith("train")}
    np.savez(tmp_path / "g.npz", about=arrays()["about"], **without)
    alone = StoredFeatures(StoredFeatures.Config(file=str(tmp_path / "g.npz"), standardise=True), root=tmp_path)
    with pytest.raises(DataError, match="no features of the train split, by which"):
        alone.pool("test")


def test_facts_name_the_run(tmp_path: Path) -> None:
    assert opened(tmp_path).facts("train") == {"classes": 3, "images": 9, "features": 2, "run": "runs/x", "step": "7"}


def test_a_split_that_is_not_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no features of the test split"):
        opened(tmp_path).pool("test")


@pytest.mark.parametrize(
    "change",
    [
        {"train.features": np.zeros((9, 2))},
        {"train.features": np.full((9, 2), np.nan, dtype=np.float32)},
        {"train.features": np.zeros((8, 2), dtype=np.float32)},
        {"train.sizes": np.array([9, 0, 0])},
        {"train.names": np.array(["a", "b"])},
        {"about": np.array("{")},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not a file of features"):
        opened(tmp_path, **change).pool("train")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path, **{"train.names": np.array(["a", "b", None], dtype=object)}).pool("train")


def test_other_files_are_refused(tmp_path: Path) -> None:
    dataset = StoredFeatures(StoredFeatures.Config(file=str(tmp_path / "f.npz")), root=tmp_path)
    with pytest.raises(DataError, match="no such file"):
        dataset.pool("train")
    for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY"):
        (tmp_path / "f.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            StoredFeatures(StoredFeatures.Config(file=str(tmp_path / "f.npz")), root=tmp_path).pool("train")
