"""Tests of Omniglot: splits, rotations, cache and errors on a small imitation; counts and times on the real images."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from metaforge.authoring.protocols import TaskShape
from metaforge.data.trees import ZipTree, content_digest
from metaforge.errors import ConfigError, DataError
from metaforge.testing.bench import difference
from metaforge_plugins.datasets import omniglot
from metaforge_plugins.datasets.omniglot import Omniglot, OmniglotOptions

SHAPE = TaskShape(5, 1, 15)
LAYOUT = {"images_background": {"Greek": 4, "Latin": 5}, "images_evaluation": {"Runes": 6}}


def drawing(alphabet: str, character: int, drawer: int) -> bytes:
    """Return an imitation of an image: 105 x 105 pixels, 1 bit, dark on white, unique and without symmetry."""
    image = Image.new("1", (105, 105), 1)
    pen = ImageDraw.Draw(image)
    pen.rectangle((5, 5, 40 + 3 * character, 20 + 2 * drawer), fill=0)
    pen.line((90, 60, 90, 60 + 7 * len(alphabet) % 40), fill=0, width=4)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_zip(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for alphabet, count in LAYOUT[name].items():
            for character in range(1, count + 1):
                for drawer in range(1, 21):
                    archive.writestr(
                        f"{name}/{alphabet}/character{character:02d}/{character:04d}_{drawer:02d}.png",
                        drawing(alphabet, character, drawer),
                    )


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for name in LAYOUT:
        write_zip(folder / f"{name}.zip", name)
    return folder


@pytest.fixture
def root(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data folder with the small imitation, and make the plugin expect its digests."""
    shutil.copytree(archives, tmp_path / "data" / "omniglot")
    for constant, characters in (("BACKGROUND", 9), ("EVALUATION", 6)):
        collection = getattr(omniglot, constant)
        path = archives / f"{collection.name}.zip"
        small = dataclasses.replace(
            collection,
            characters=characters,
            md5=hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(),
            content=content_digest(ZipTree(path)),
        )
        monkeypatch.setattr(omniglot, constant, small)
    return tmp_path / "data"


def made(root: Path, **options: object) -> Omniglot:
    return Omniglot(OmniglotOptions.model_validate(options), root=root)


def test_lake_splits_by_collection_and_rotates_after_splitting(root: Path) -> None:
    data = made(root)
    assert len(data.pool("train").names) == 36
    assert len(data.pool("test").names) == 6
    assert len(set(data.characters("train"))) == 9
    assert not set(data.characters("train")) & set(data.characters("test"))
    assert data.pool("train").names[:4] == [f"Greek/character01/rot{angle}" for angle in ("000", "090", "180", "270")]
    task = data.sample("train", SHAPE, 0, 3, seed=0)
    assert task.query.x.shape == (3, 75, 1, 28, 28)
    assert data.spec("test", SHAPE).x_shape == (1, 28, 28)
    assert data.facts("train") | {"alphabets": 2, "classes": 36, "characters": 9} == data.facts("train")


@pytest.mark.parametrize(
    ("rotations", "train", "test"), [("train", 36, 6), ("all", 36, 24), ("none", 9, 6), ("task", 9, 6)]
)
def test_rotations_by_split(root: Path, rotations: str, train: int, test: int) -> None:
    data = made(root, rotations=rotations)
    assert (len(data.pool("train").names), len(data.pool("test").names)) == (train, test)


def test_rotated_classes_share_one_array_of_pixels(root: Path) -> None:
    pool = made(root).pool("train")
    base = pool.take(np.array([4]), np.array([3]))
    for quarters in range(4):
        turned = pool.take(np.array([4 + quarters]), np.array([3]))
        assert np.array_equal(turned, np.rot90(base, quarters, axes=(-2, -1)))
    assert pool.images.shape[0] == 9


def test_ink_is_white_if_inverted(root: Path) -> None:
    ink, paper = (made(root, invert=invert).pool("test").take(np.array([0]), np.array([0])) for invert in (True, False))
    assert ink.mean() < 128 < paper.mean()
    assert np.array_equal(ink, 255 - paper)


def test_classes_are_named_by_alphabet_character_and_rotation(root: Path) -> None:
    names = made(root).class_names("train")
    assert len(names) == len(set(names)) == 36
    assert names[1].endswith("/rot090")


def test_holdout_makes_a_val_split_of_whole_alphabets(root: Path) -> None:
    with pytest.raises(DataError, match="no val classes") as caught:
        made(root).pool("val")
    assert "holdout" in caught.value.remedy
    data = made(root, holdout=1)
    val, train = ({name.split("/")[0] for name in data.characters(split)} for split in ("val", "train"))
    assert len(val) == len(train) == 1
    assert val != train
    assert len(set(data.characters("val"))) + len(set(data.characters("train"))) == 9


def lists(root: Path, **content: str) -> None:
    (root / "omniglot" / "splits").mkdir(exist_ok=True)
    for split, text in content.items():
        (root / "omniglot" / "splits" / f"mine-{split}.txt").write_text(text)


def test_lists_of_classes(root: Path) -> None:
    lists(
        root,
        train="Greek/character01/rot000\nGreek/character01/rot180\nRunes/character02/rot090\n",
        test="Latin/character03\nGreek/character02\n",
    )
    data = made(root, split="file", split_file="splits/mine")
    assert data.pool("train").names == [
        "Greek/character01/rot000",
        "Greek/character01/rot180",
        "Runes/character02/rot090",
    ]
    assert data.pool("test").names == ["Latin/character03/rot000", "Greek/character02/rot000"]
    assert len(made(root, split="file", split_file="splits/mine", rotations="all").pool("test").names) == 8
    plain = made(root, split="file", split_file="splits/mine", rotations="none").pool("train").names
    assert plain == ["Greek/character01/rot000", "Runes/character02/rot000"]
    absolute = str(root / "omniglot" / "splits" / "mine")
    assert made(root, split="file", split_file=absolute).pool("test").names == data.pool("test").names
    with pytest.raises(DataError, match="mine-val"):
        data.pool("val")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("Greek/character01\nRunes/character01/rot090", "in the lists of both train and test"),
        ("Greek/character09", "Did you mean 'Greek/character0"),
        ("Greek", "is not the name of a class"),
        ("Greek/character01/rot045", "is not the name of a class"),
        ("a/b/c/d", "is not the name of a class"),
        ("Greek/character01\nGreek/character01", "listed twice"),
        ("Greek/character01/rot090\nGreek/character01/rot090", "listed twice"),
        ("", "is empty"),
    ],
)
def test_wrong_lists_are_refused(root: Path, train: str, message: str) -> None:
    lists(root, train=train, test="Runes/character01")
    with pytest.raises(DataError, match=message) as caught:
        made(root, split="file", split_file="splits/mine").pool("train")
    assert "mine-train.txt" in caught.value.where


def test_on_demand_and_folders_give_the_same_episodes(root: Path) -> None:
    expected = made(root).sample("train", SHAPE, 0, 2, seed=4)
    others = [made(root, mode="on-demand").sample("train", SHAPE, 0, 2, seed=4)]
    for name in LAYOUT:
        with zipfile.ZipFile(root / "omniglot" / f"{name}.zip") as archive:
            archive.extractall(root / "omniglot")
        (root / "omniglot" / f"{name}.zip").unlink()
    others += [made(root, mode=mode).sample("train", SHAPE, 0, 2, seed=4) for mode in ("memory", "on-demand")]
    for other in others:
        assert not difference(expected, other)


@pytest.mark.parametrize(("rotations", "classes"), [("train", 36), ("all", 36), ("none", 9), ("task", 9)])
def test_every_spec_has_the_number_of_training_classes(root: Path, rotations: str, classes: int) -> None:
    data = made(root, rotations=rotations)
    assert data.spec("train", SHAPE).classes == len(data.pool("train").names) == classes
    # For the test split, the archive of the training images need not be there.
    (root / "omniglot" / "images_background.zip").unlink()
    assert made(root, rotations=rotations).spec("test", SHAPE).classes == classes


def test_the_cache_is_used_and_depends_on_file_and_options(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAFORGE_CACHE", str(tmp_path / "cache"))
    expected = made(root).sample("test", SHAPE, 0, 1, seed=0).query.x
    (path,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Omniglot, "_undecoded", None)
        assert torch.equal(made(root).sample("test", SHAPE, 0, 1, seed=0).query.x, expected)
    for options in ({"size": 20}, {"invert": False}, {"resample": "lanczos"}):
        made(root, **options).pool("test")
    assert len(list((tmp_path / "cache").iterdir())) == 4
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match="damaged"):
        assert torch.equal(made(root).sample("test", SHAPE, 0, 1, seed=0).query.x, expected)


def test_missing_images_are_an_error_with_both_ways_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        made(tmp_path).spec("train", SHAPE)
    for part in ("metaforge data fetch omniglot", "images_background.zip", "METAFORGE_DATA"):
        assert part in caught.value.remedy
    assert str(tmp_path / "omniglot") in caught.value.where


def test_damaged_archives_are_named(root: Path) -> None:
    path = root / "omniglot" / "images_evaluation.zip"
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"<html>", good[:3000] + bytes(200) + good[3200:]):
        path.write_bytes(bad)
        with pytest.raises(DataError) as caught:
            made(root).pool("test")
        assert str(path) in caught.value.where
    assert made(root).pool("train").per_class == 20


def test_an_incomplete_set_is_refused(root: Path) -> None:
    folder = root / "omniglot"
    with zipfile.ZipFile(folder / "images_evaluation.zip") as archive:
        archive.extractall(folder)
    (folder / "images_evaluation.zip").unlink()
    (folder / "images_evaluation" / "Runes" / "character03" / "0003_07.png").unlink()
    with pytest.raises(DataError, match="5 characters of 20 images were found, not 6"):
        made(root).pool("test")


def test_wrong_requests_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        made(root).pool("tests")
    with pytest.raises(DataError, match="6 classes of 20 images") as caught:
        made(root).spec("test", TaskShape(20, 1, 15))
    assert "ways = 6" in caught.value.remedy


def test_fetch_downloads_both_official_files_and_nothing_twice(root: Path, archives: Path, tmp_path: Path) -> None:
    urls: list[str] = []
    seen: list[str] = []

    class Response(io.BytesIO):
        headers = Message()

    @contextmanager
    def opener(url: str) -> Iterator[Response]:
        urls.append(url)
        yield Response((archives / url.rsplit("/", 1)[1]).read_bytes())

    for _ in range(2):
        paths = Omniglot.fetch(tmp_path / "new", lambda name, done, total: seen.append(name), opener=opener)
    assert [path.name for path in paths] == ["images_background.zip", "images_evaluation.zip"]
    base = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
    assert urls == [base + path.name for path in paths]
    assert set(seen) == {path.name for path in paths}
    assert made(tmp_path / "new").pool("train").per_class == 20


def test_the_published_digests() -> None:
    assert omniglot.BACKGROUND.md5 == "68d2efa1b9178cc56df9314c21c6e718"
    assert omniglot.EVALUATION.md5 == "6b91aef0f799c5bb55b94e3f2daec811"


@pytest.mark.omniglot
@pytest.mark.parametrize("constant", ["BACKGROUND", "EVALUATION"])
def test_real_content_digest(omniglot_root: Path, constant: str) -> None:
    collection = getattr(omniglot, constant)
    assert content_digest(ZipTree(omniglot_root / "omniglot" / f"{collection.name}.zip")) == collection.content


@pytest.mark.omniglot
@pytest.mark.parametrize(
    ("options", "characters"),
    [
        ({"split": "lake"}, {"train": 964, "test": 659}),
        ({"split": "lake", "holdout": 5}, {"test": 659}),
        ({"split": "random"}, {"train": 1100, "val": 100, "test": 423}),
        ({"split": "file", "split_file": "splits/vinyals"}, {"train": 1028, "val": 172, "test": 423}),
    ],
)
@pytest.mark.parametrize("rotations", ["train", "all", "none", "task"])
def test_real_splits(
    omniglot_root: Path, options: dict[str, object], characters: dict[str, int], rotations: str
) -> None:
    data = made(omniglot_root, rotations=rotations, **options)
    for split, count in characters.items():
        turned = rotations == "all" or (rotations == "train" and split == "train")
        assert len(set(data.characters(split))) == count
        assert len(data.pool(split).names) == count * (4 if turned else 1)
    used = [name for split in ("train", *(characters.keys() - {"train"})) for name in set(data.characters(split))]
    if "holdout" in options:
        used += set(data.characters("val"))
        assert len(used) == 1623
    assert len(used) == len(set(used))


@pytest.mark.omniglot
def test_real_random_splits_differ_by_seed(omniglot_root: Path) -> None:
    one, two, again = (set(made(omniglot_root, split="random", split_seed=s).characters("test")) for s in (1, 2, 1))
    assert one == again != two


@pytest.mark.omniglot
def test_real_reading_times_and_memory(omniglot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFORGE_CACHE", str(tmp_path))
    for limit in (8.0, 0.3):
        best = float("inf")
        for _ in range(1 if limit > 1 else 3):
            # Processor time, because the machine may be shared; everything runs in one thread.
            start = time.process_time()
            data = made(omniglot_root)
            pools = [data.pool(split) for split in ("train", "test")]
            best = min(best, time.process_time() - start)
        assert best < limit
    held = {id(pool.images): pool.images for pool in pools}
    assert sum(images.nbytes for images in held.values() if isinstance(images, np.ndarray)) < 60e6


@pytest.mark.omniglot
def test_nearest_neighbour_accuracy_on_real_images(omniglot_root: Path) -> None:
    task = made(omniglot_root).sample("test", SHAPE, 0, 300, seed=0)
    support, query = (part.x.float().flatten(2) for part in (task.support, task.query))
    guess = task.support.y.gather(1, torch.cdist(query, support).argmin(-1))
    assert (guess == task.query.y).float().mean().item() == pytest.approx(0.42, abs=0.02)


def test_shift_and_tilt_change_training_images_only(root: Path) -> None:
    plain, moved = made(root), made(root, shift=10, tilt=11.25)
    for split, same in (("train", False), ("test", True)):
        before, after = (data.sample(split, SHAPE, 0, 2, seed=0).query.x for data in (plain, moved))
        assert torch.equal(before, after) == same
    assert torch.equal(
        moved.sample("train", SHAPE, 0, 2, seed=0).query.x, moved.sample("train", SHAPE, 0, 2, seed=0).query.x
    )
