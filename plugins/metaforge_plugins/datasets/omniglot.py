"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawers each.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from metaforge import data
from metaforge.errors import DataError, nearest

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
SPLITS, DRAWERS = ("train", "val", "test"), 20
_QUARTERS = {"rot000": (0,), "rot090": (1,), "rot180": (2,), "rot270": (3,)}


@dataclass(frozen=True)
class Collection:
    """One of the two official archives: its number of characters, its MD5 digest and its content digest (SHA-256)."""

    name: str
    characters: int
    md5: str
    content: str


BACKGROUND = Collection(
    name="images_background",
    characters=964,
    md5="68d2efa1b9178cc56df9314c21c6e718",
    content="2d8ca531b27f0b8bc6c38ca108f56e74c16e149f9826e3cdb486815459aa292e",
)
EVALUATION = Collection(
    name="images_evaluation",
    characters=659,
    md5="6b91aef0f799c5bb55b94e3f2daec811",
    content="242fc639fa582d17ec88b54b1df839d17bb635272a5e836ccfbdd3f052739c01",
)


class OmniglotOptions(data.ImageOptions):
    """Options of the Omniglot data set."""

    size: int = Field(default=28, ge=8, le=105, description="height and width of the images in pixels")
    split: Literal["lake", "random", "file"] = Field(
        default="lake",
        description="lake: background/evaluation by alphabet; random: 1100/100/423 characters; file: lists of classes",
    )
    split_file: str = Field(
        default="splits/vinyals",
        min_length=1,
        description="prefix of the lists <prefix>-train.txt, -val.txt, -test.txt in the folder omniglot (split = file)",
    )
    split_seed: int = Field(default=1, ge=0, description="seed of the random split and of the held-out alphabets")
    holdout: int = Field(
        default=0, ge=0, le=29, description="background alphabets held out for the val split (split = lake; 0: none)"
    )
    rotations: Literal["train", "all", "none", "task"] = Field(
        default="train",
        description="splits in which copies rotated by 90, 180 and 270 degrees are additional classes; task: no "
        "copies; in every split, each class of a task is rotated by an angle that is drawn for the task",
    )
    shift: float = Field(default=0, ge=0, le=50, description="largest shift of a training image, in pixels of 105")
    tilt: float = Field(default=0, ge=0, le=90, description="largest rotation of a training image, in degrees")
    invert: bool = Field(default=True, description="make ink 255 and paper 0; the files have dark ink on white")
    resample: data.Resample = Field(default="box", description="filter for resizing the images of 105 x 105 pixels")
    mode: Literal["memory", "on-demand"] = Field(
        default="memory",
        description="memory: load all images and cache them on disk; on-demand: decode each image when it is sampled",
    )


class Omniglot(data.ImageDataset):
    """Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawers each.

    Rotated copies are additional classes, made after the characters have been split. With split = file, a line of a
    list may name a rotation, as in `Greek/character01/rot090`; a character without one gets all four. In splits that
    `rotations` does not select, every character is one unrotated class, which rotations = task rotates in each task.
    """

    Config = OmniglotOptions
    reference: ClassVar[str] = "https://doi.org/10.1126/science.aab3050"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"classification": {"backbone": {"name": "conv4"}}}

    def __init__(self, config: OmniglotOptions, *, root: Path) -> None:
        self.config = config
        self.folder = root / "omniglot"
        self._sources: dict[tuple[str, ...], tuple[list[str], data.Pixels | data.TreeImages]] = {}
        self._pools: dict[str, data.ClassPool] = {}

    def training_classes(self) -> int:
        """Return the number of classes of the training split; for its test split, lake needs one archive only."""
        if self.config.split == "lake" and not self.config.holdout:
            return BACKGROUND.characters * (1 if self.config.rotations in ("none", "task") else 4)
        return super().training_classes()

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the numbers of classes, characters, alphabets and images of a split, and how it was made."""
        classes, characters = len(self.pool(split).names), len(set(self.characters(split)))
        return {
            "classes": classes,
            "characters": characters,
            "alphabets": len({name.split("/")[0] for name in self.characters(split)}),
            "images per class": DRAWERS,
            "images": classes * DRAWERS,
            "split": self.config.split,
            "rotations": self.config.rotations,
            "image size": self.config.size,
        }

    def characters(self, split: str) -> tuple[str, ...]:
        """Return the character `Alphabet/characterNN` of each class of a split, without its rotation."""
        return tuple(name.rpartition("/")[0] for name in self.pool(split).names)

    def pool(self, split: str) -> data.ClassPool:
        """Return the classes of a split, named `Alphabet/characterNN/rotRRR`; raise `DataError` if data are missing."""
        data.check_split(split, SPLITS, "omniglot")
        if split not in self._pools:
            method = {"lake": self._lake, "random": self._random, "file": self._listed}[self.config.split]
            self._pools[split] = method(split)
        return self._pools[split]

    def _lake(self, split: str) -> data.ClassPool:
        """Return a split by alphabet: train and val (`holdout` alphabets) from background, test from evaluation."""
        if split == "test":
            characters, _ = self._images(EVALUATION)
            return self._pool(split, [(name, ()) for name in characters], EVALUATION)
        if split == "val" and self.config.holdout == 0:
            raise DataError(
                "the lake split has no val classes",
                where="omniglot, split = lake",
                remedy="set holdout to 1 or more background alphabets, or use split = random or split = file",
            )
        characters, _ = self._images(BACKGROUND)
        alphabets = sorted({name.split("/")[0] for name in characters})
        keys = data.episode_keys(self.config.split_seed, "alphabets held out", 0, 1)
        order = data.sample_without_replacement(keys, len(alphabets), len(alphabets))[0]
        held_out = {alphabets[i] for i in order[: self.config.holdout]}
        chosen = [name for name in characters if (name.split("/")[0] in held_out) == (split == "val")]
        return self._pool(split, [(name, ()) for name in chosen], BACKGROUND)

    def _random(self, split: str) -> data.ClassPool:
        """Return a random split of all characters: 1100 for train, 100 for val and the rest for test."""
        characters, _ = self._images(BACKGROUND, EVALUATION)
        ordered = sorted(characters)
        keys = data.episode_keys(self.config.split_seed, "characters", 0, 1)
        order = data.sample_without_replacement(keys, len(ordered), len(ordered))[0]
        part = {"train": order[:1100], "val": order[1100:1200], "test": order[1200:]}[split]
        return self._pool(split, [(ordered[i], ()) for i in part], BACKGROUND, EVALUATION)

    def _listed(self, split: str) -> data.ClassPool:
        """Return the split that the lists of classes define; no two lists may share a character."""
        lists = {name: self._read_list(name) for name in SPLITS if name == split or os.path.isfile(self._list(name))}
        for other, classes in lists.items():
            shared = sorted(lists[split].keys() & classes.keys())
            if other != split and shared:
                raise DataError(
                    f"{shared[0]} is in the lists of both {split} and {other}",
                    where=str(self._list(split)),
                    remedy="list each character, with all its rotations, for one split only",
                )
        return self._pool(split, list(lists[split].items()), BACKGROUND, EVALUATION)

    def _list(self, split: str) -> Path:
        return self.folder / f"{self.config.split_file}-{split}.txt"

    def _read_list(self, split: str) -> dict[str, tuple[int, ...]]:
        """Return the characters of a list, each with the quarter turns that the list names (empty if it names none)."""
        path = self._list(split)
        form = "write a text file with lines such as Greek/character01 or Greek/character01/rot090 (see split_file)"
        try:
            lines = data.read_file(path).decode("utf-8").split()
        except UnicodeDecodeError as error:
            raise DataError(f"the {split} list is not UTF-8 text: {error}", where=str(path), remedy=form) from error
        turns_of: dict[str, tuple[int, ...]] = {}
        for line in lines:
            parts = line.split("/")
            turns = () if len(parts) == 2 else _QUARTERS.get(parts[-1]) if len(parts) == 3 else None
            if turns is None:
                raise DataError(f"{line!r} is not the name of a class", where=str(path), remedy=form)
            name = "/".join(parts[:2])
            if name in turns_of and (not turns or not turns_of[name] or turns[0] in turns_of[name]):
                raise DataError(f"{line!r} is listed twice", where=str(path), remedy="list every class once")
            turns_of[name] = (*turns_of.get(name, ()), *turns)
        if not turns_of:
            raise DataError(f"the list of {split} classes is empty", where=str(path), remedy=form)
        return turns_of

    def _pool(self, split: str, classes: list[tuple[str, tuple[int, ...]]], *collections: Collection) -> data.ClassPool:
        """Return the pool of characters, rotated by their quarter turns (empty: all four) in splits with rotations."""
        characters, images = self._images(*collections)
        rotated = self.config.rotations == "all" or (self.config.rotations == "train" and split == "train")
        row_of = {name: row for row, name in enumerate(characters)}
        if unknown := [name for name, _ in classes if name not in row_of]:
            raise DataError(
                f"there is no character {unknown[0]!r}.{nearest(unknown[0], row_of)}",
                where=str(self._list(split)),
                remedy="use the names of the folders: Alphabet/characterNN",
            )
        copies = [(name, turns) for name, listed in classes for turns in ((listed or range(4)) if rotated else (0,))]
        moves = split == "train" and (self.config.shift or self.config.tilt)
        return data.ClassPool(
            images,
            names=[f"{name}/rot{90 * turns:03d}" for name, turns in copies],
            rows=np.array([row_of[name] for name, _ in copies]),
            turns=np.array([turns for _, turns in copies]) if rotated else None,
            rotate=self.config.rotations == "task",
            augment=partial(data.jitter, shift=self.config.shift / 105, angle=self.config.tilt) if moves else None,
        )

    def _images(self, *collections: Collection) -> tuple[list[str], data.Pixels | data.TreeImages]:
        """Return the characters of some collections and their images, one row per character."""
        names = tuple(collection.name for collection in collections)
        if names not in self._sources:
            method = self._undecoded if self.config.mode == "on-demand" else self._decoded
            self._sources[names] = method(*collections)
        return self._sources[names]

    def _tree(self, collection: Collection) -> data.Tree:
        tree = data.open_tree(self.folder, collection.name)
        if tree is None:
            raise DataError(
                f"the Omniglot images are missing: no {collection.name}.zip and no folder {collection.name}",
                where=str(self.folder),
                remedy="run `metaforge data fetch omniglot`, or put images_background.zip and images_evaluation.zip "
                "into <data>/omniglot, where <data> is the folder that METAFORGE_DATA names",
            )
        return tree

    def _decoded(self, *collections: Collection) -> tuple[list[str], data.Pixels]:
        """Return the characters of some collections and their images as an array, from the cache if possible."""
        parts = [self._part(collection) for collection in collections]
        names = [str(name) for part in parts for name in part["characters"]]
        return names, parts[0]["images"] if len(parts) == 1 else np.concatenate([part["images"] for part in parts])

    def _part(self, collection: Collection) -> data.Arrays:
        tree = self._tree(collection)
        key = self.config.model_dump(include={"size", "invert", "resample"})
        key["source"] = f"{tree.path.resolve()} {tree.stamp()}"

        def build() -> data.Arrays:
            characters, source = self._undecoded(collection)
            return {"characters": np.array(characters), "images": source.all()}

        return data.load_or_build(f"omniglot-{collection.name}-{self.config.size}", key, build)

    def _undecoded(self, *collections: Collection) -> tuple[list[str], data.TreeImages]:
        """Return the characters of some collections and their undecoded images; raise `DataError` if any is missing."""
        places: dict[str, list[tuple[data.Tree, str]]] = {}
        for collection in collections:
            tree, found = self._tree(collection), dict[str, list[tuple[data.Tree, str]]]()
            for name in tree.names:
                parts = name.split("/")
                hidden = any(part.startswith(".") for part in parts)
                if len(parts) == 4 and parts[0] == collection.name and name.lower().endswith(".png") and not hidden:
                    found.setdefault(f"{parts[1]}/{parts[2]}", []).append((tree, name))
            wrong = {character: len(images) for character, images in found.items() if len(images) != DRAWERS}
            if len(found) != collection.characters or wrong:
                first = "; ".join(f"{name}: {count} images, not {DRAWERS}" for name, count in list(wrong.items())[:3])
                complete = f"{len(found) - len(wrong)} characters of {DRAWERS} images were found"
                raise DataError(
                    f"{complete}, not {collection.characters}{first and f' ({first})'}",
                    where=str(tree.path),
                    remedy="delete it and run `metaforge data fetch omniglot`",
                )
            places |= found
        c = self.config
        return list(places), data.TreeImages(list(places.values()), c.size, c.resample, c.invert)

    @classmethod
    def fetch(
        cls, root: Path, progress: data.Progress | None = None, *, opener: data.Opener = data.open_https
    ) -> list[Path]:
        """Download the two official archives into `root/omniglot`, verify them, and return their paths.

        An archive or folder that is present and intact is kept. Raises `DataError` or `StorageError`.
        """
        return [
            data.fetch_tree(
                root / "omniglot",
                collection.name,
                url=f"{URL}/{collection.name}.zip",
                md5=collection.md5,
                content=collection.content,
                max_bytes=64 * 2**20,
                progress=progress,
                opener=opener,
            )
            for collection in (BACKGROUND, EVALUATION)
        ]
