"""What the tests of the data sets share whose images the user provides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from image_trees import NamesOnly, class_folders, complete_names, write
from metaforge.authoring import TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.data import ClassFolders
from metaforge.data import class_folders as module
from metaforge.errors import DataError
from metaforge.registry.scan import scan
from metaforge.testing import Subject

SPLITS = ("train", "val", "test")


def subject_of(name: str) -> Subject:
    """Return a data set with small images, for the conformance kit on a copy that is not complete."""
    # Without an entry point the `import` check is skipped: `tests/plugins/test_conformance.py` imports all plugins.
    return replace(Subject.of(f"dataset:{name}", options={"size": 8, "complete": False}), entry=None)


def made(cls: type[ClassFolders], root: Path, **options: Any) -> ClassFolders:
    """Return a data set with some options."""
    return cls(cls.Config.model_validate(options), root=root)


def assert_read(cls: type[ClassFolders], files: Mapping[str, bytes], root: Path) -> None:
    """Check that a layout gives the same tasks as folders of splits, and that it is refused as not complete."""
    write(root / "files" / cls.folder, files)
    write(root / "folders" / cls.folder, class_folders())
    shape, tasks = TaskShape(3, 1, 2), []
    for folder in ("files", "folders"):
        data = made(cls, root / folder, complete=False, size=8)
        tasks.append(data.sample("test", shape, 0, 3, seed=0))
    assert tasks[0].query.x.shape == (3, 6, 3, 8, 8)
    assert tasks[0].query.x.equal(tasks[1].query.x)
    with pytest.raises(DataError, match=f"the copy of {cls.folder} is not complete: it has 4 train classes, not"):
        made(cls, root / "files").pool("train")


def assert_complete(
    cls: type[ClassFolders],
    counts: tuple[int, int, int],
    sizes: Mapping[str, list[int]] | int,
    monkeypatch: pytest.MonkeyPatch,
) -> ClassFolders:
    """Check that a complete copy is accepted, and that a class or an image more or less is refused; return it."""
    classes = dict(zip(SPLITS, counts, strict=True))
    names = complete_names(classes, sizes)

    def opened(names: list[str]) -> ClassFolders:
        monkeypatch.setattr(module, "open_tree", lambda *_: NamesOnly(names))
        return made(cls, Path())

    complete = opened(names)
    for split in SPLITS:
        assert complete.facts(split)["classes"] == classes[split]
    assert complete.training_classes() == classes["train"]
    for others in (
        names[1:],
        [*names, f"{names[0]}.png"],
        [*names, "val/another/1.png"],
        [name for name in names if not name.startswith("test/test000/")],
    ):
        with pytest.raises(DataError, match=f"the copy of {cls.folder} is not complete"):
            opened(others).facts("train")
    return complete


def assert_no_download(cls: type[ClassFolders], *addresses: str, root: Path) -> None:
    """Check that the error for missing files and that of fetching say where to get them and where to put them."""
    for call in (lambda: made(cls, root).pool("train"), lambda: cls.fetch(root)):
        with pytest.raises(DataError, match=cls.folder) as caught:
            call()
        for text in (*addresses, str(root / cls.folder), "METAFORGE_DATA"):
            assert text in caught.value.remedy
        assert str(root / cls.folder) in caught.value.where


def assert_suggestions(name: str, x_shape: tuple[int, ...], root: Path) -> None:
    """Check the network, the tasks and the images that a run on a data set gets."""
    layer = Layer("test", {"dataset": {"name": name}, "learner": {"name": "maml"}}, explicit=True)
    settings = resolve([layer], scan()).to_dict()
    assert settings["backbone"]["name"] == "conv4"
    assert settings["backbone"]["variant"] == "pool"
    assert [settings["task"][key] for key in ("ways", "shots", "queries")] == [5, 1, 15]
    cls = scan().load("dataset", name)
    write(root / name, class_folders())
    assert made(cls, root, complete=False).spec("test", TaskShape(2, 1, 1)).x_shape == x_shape
