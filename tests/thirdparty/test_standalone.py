"""A run is loaded and applied to somebody's own tensors where its data set is missing, of a third party or built in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metaforge
from metaforge.authoring import Dataset, Options, Task, TaskShape, TaskSpec
from metaforge.data import ClassPool, check_shape, read_file, sample_episodes
from metaforge.errors import CheckpointError, DataError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks

CLASSES = {"train": ("ant", "bee", "cat"), "val": ("dog", "eel", "fox"), "test": ("gnu", "hen", "ibis")}
SETTINGS: dict[str, Any] = {"task": {"ways": 3, "queries": 2}, "engine": {"threads": 1}}
SETTINGS |= {"train": {"ways": 3, "queries": 2}, "backbone": {"name": "mlp", "widths": [8]}}


class Animals(Dataset):
    """Classes in folders of `animals`: one folder per split, and in it one file of images per class."""

    Config, kind, note = Options, "classification", "drawn by hand"

    def __init__(self, config: Options, *, root: Path) -> None:
        self.folder = root / "animals"

    def _pool(self, split: str) -> ClassPool:
        if split not in CLASSES:
            raise DataError(f"there is no split {split!r}", where="animals", remedy="use train, val or test")
        names = CLASSES[split]
        rows = [np.frombuffer(read_file(self.folder / split / name), np.uint8) for name in names]
        return ClassPool(np.stack(rows).reshape(len(names), 6, 1, 8, 8), names)

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        check_shape(self._pool(split), shape)
        return TaskSpec("classification", (1, 8, 8), shape.ways, shape, classes=len(CLASSES["train"]))

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        return sample_episodes(self._pool(split), shape, first, count, seed=seed, split=split)

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        return {"classes": len(self._pool(split).names)}

    def class_names(self, split: str) -> Sequence[str]:
        return self._pool(split).names


def draw(root: Path) -> Path:
    """Write images of all classes, and return the folder of the data sets."""
    generator = np.random.Generator(np.random.PCG64(0))
    for split, names in CLASSES.items():
        for name in names:
            path = root / "animals" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(generator.integers(0, 256, 6 * 64, dtype=np.uint8).tobytes())
    return root


@pytest.fixture(scope="session")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("data"))


@parametrize_with_checks([Subject("dataset", "animals", Animals, shape=TaskShape(2, 1, 2))])
def test_the_data_set_passes_the_conformance_kit(subject: Subject, check: Check, animals: Path) -> None:
    check(subject.with_root(animals))


@pytest.fixture
def registry() -> Registry:
    return scan().with_plugin("dataset", "animals", Animals)


def test_a_run_is_applied_where_its_data_set_is_missing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw(tmp_path / "data")
    monkeypatch.setenv("METAFORGE_DATA", str(data))
    run = metaforge.train(
        "protonet", "animals", steps=2, tasks=2, out=tmp_path / "run", settings=SETTINGS, registry=registry
    )
    task = run.task()
    expected = run.learner().predict(run.values, run.learner().adapt(run.values, task.support), task.query.x)
    shutil.rmtree(data)
    monkeypatch.delenv("METAFORGE_DATA")
    monkeypatch.chdir(tmp_path)
    loaded = metaforge.load(tmp_path / "run", registry=registry)
    assert loaded.spec() == TaskSpec("classification", (1, 8, 8), 3, TaskShape(3, 1, 2), classes=3)
    learner = loaded.learner()
    fast = learner.adapt(loaded.values, task.support)
    assert torch.equal(learner.predict(loaded.values, fast, task.query.x), expected)
    assert loaded.class_names() == CLASSES["test"]
    assert loaded.class_names("train") == CLASSES["train"]
    assert loaded.data is not None
    assert loaded.data.note == "drawn by hand"
    assert loaded.spec(shots=2) == replace(loaded.spec(), shape=TaskShape(3, 2, 2))
    for unrecorded in (loaded.task, loaded.evaluate, lambda: loaded.spec("val"), lambda: loaded.class_names("val")):
        with pytest.raises(DataError):
            unrecorded()


def test_the_folder_of_an_earlier_version_needs_its_data_set(
    registry: Registry, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(animals))
    run = metaforge.train(
        "protonet", "animals", steps=1, tasks=1, out=tmp_path / "run", settings=SETTINGS, registry=registry
    )
    (tmp_path / "run" / "data.json").unlink()
    loaded = metaforge.load(tmp_path / "run", registry=registry)
    assert (loaded.spec(), loaded.class_names()) == (run.spec(), CLASSES["test"])
    monkeypatch.setenv("METAFORGE_DATA", str(tmp_path))
    with pytest.raises(DataError):
        metaforge.load(tmp_path / "run", registry=registry)


def test_a_record_of_other_tasks_does_not_fit_the_values(
    registry: Registry, animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORGE_DATA", str(animals))
    metaforge.train("maml", "animals", steps=1, tasks=1, out=tmp_path / "run", settings=SETTINGS, registry=registry)
    path = tmp_path / "run" / "data.json"
    record = json.loads(path.read_text())
    record["specs"][-1]["outputs"] = 7
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="does not belong to this learner"):
        metaforge.load(tmp_path / "run", registry=registry)
