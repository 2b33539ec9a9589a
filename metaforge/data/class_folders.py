"""The base class of data sets of colour images in class folders, whose splits come from the layout of the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from pydantic import Field

from metaforge.authoring.protocols import Options
from metaforge.data.augment import jitter
from metaforge.data.cache import load_or_build
from metaforge.data.class_layouts import LAYOUTS, SPLITS, Layout, Splits, find_classes
from metaforge.data.class_pool import ClassPool, check_split
from metaforge.data.downloads import Progress
from metaforge.data.image_dataset import ImageDataset, ImageOptions
from metaforge.data.images import Resample
from metaforge.data.trees import Tree, TreeImages, open_tree
from metaforge.errors import DataError


class ClassFoldersOptions(ImageOptions):
    """Options of data sets of images in class folders."""

    size: int = Field(default=84, ge=8, le=512, description="height and width of the images in pixels")
    resample: Resample = Field(default="lanczos", description="filter for resizing images of another size")
    shift: float = Field(default=0, ge=0, le=0.5, description="largest shift of a training image, as a share of size")
    tilt: float = Field(default=0, ge=0, le=90, description="largest rotation of a training image, in degrees")
    mode: Literal["memory", "on-demand"] = Field(
        default="memory",
        description="memory: load all images of a split and cache them on disk; on-demand: decode each image when it "
        "is sampled",
    )
    complete: bool = Field(
        default=True,
        description="refuse a copy that has other numbers of classes or images than the published data set; false: use "
        "the classes and images that are there",
    )


@dataclass(frozen=True)
class Contents:
    """What a complete copy of a data set has.

    Args:
        classes: The number of classes of each split.
        images: The least and the largest number of images of a class.
        total: The number of images of all splits together.

    Example:
        >>> from metaforge.data import Contents
        >>> Contents(classes={"train": 64, "val": 16, "test": 20}, images=(600, 600), total=60_000).total
        60000
    """

    classes: Mapping[str, int]
    images: tuple[int, int]
    total: int

    def problems(self, splits: Splits) -> list[str]:
        """Return what is missing or superfluous in the classes of all splits, each in a few words."""
        problems = [
            f"{len(splits[split])} {split} classes, not {count}"
            for split, count in self.classes.items()
            if len(splits[split]) != count
        ]
        least, most = self.images
        numbers = str(least) if least == most else f"{least} to {most}"
        problems += [
            f"{len(images)} images of the {split} class {name!r}, not {numbers}"
            for split, classes in splits.items()
            for name, images in classes.items()
            if not least <= len(images) <= most
        ]
        total = sum(len(images) for classes in splits.values() for images in classes.values())
        if not problems and total != self.total:
            problems.append(f"{total:,} images in all splits, not {self.total:,}")
        return problems


class ClassFolders(ImageDataset):
    """Base class of data sets of colour images that the user provides: a subclass says what a complete copy has.

    The files are in the folder `root/<folder>`, or in the archive `root/<folder>.zip`, in one of the layouts that the
    errors describe. Pickles are never read.

    Attributes:
        folder: The name of the folder, which is that of the data set.
        inner: A folder within it whose files count as if they were beside it, such as one of the official archive.
        contents: What a complete copy has.
        source: Where the images are to be had, for the remedy of an error.

    Example:
        >>> import io, tempfile, zipfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from metaforge.data import ClassFolders, Contents
        >>> class Shades(ClassFolders):
        ...     "Images of one colour each."
        ...     folder, source = "shades", "draw them"
        ...     contents = Contents(classes={"train": 2, "val": 1, "test": 1}, images=(1, 3), total=4)
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (20, 20), "teal").save(file, "PNG")
        >>> with tempfile.TemporaryDirectory() as root:
        ...     with zipfile.ZipFile(Path(root) / "shades.zip", "w") as archive:
        ...         for name in ("train/teal", "train/green", "val/blue", "test/red"):
        ...             archive.writestr(f"shades/{name}/1.png", file.getvalue())
        ...     shades = Shades(Shades.Config(size=8, mode="on-demand"), root=Path(root))
        ...     shades.class_names("train"), shades.pool("train").image_shape
        (['green', 'teal'], (3, 8, 8))
    """

    Config: ClassVar[type[Options]] = ClassFoldersOptions
    folder: ClassVar[str]
    inner: ClassVar[str] = ""
    contents: ClassVar[Contents]
    source: ClassVar[str]

    def __init__(self, config: Any, *, root: Path) -> None:
        self.config: ClassFoldersOptions = config
        self.root = root
        self._found: tuple[Tree, Layout, Splits] | None = None
        self._pools: dict[str, ClassPool] = {}

    def training_classes(self) -> int:
        """Return the number of classes of the training split, without reading its images."""
        return len(self._files()[2]["train"])

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the numbers of classes and images of a split, and the layout of the files."""
        classes = self._classes(split)
        sizes = [len(images) for images in classes.values()]
        return {
            "classes": len(classes),
            "images": sum(sizes),
            "images per class": sizes[0] if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}",
            "image size": self.config.size,
            "layout": str(self._files()[1]),
        }

    def class_names(self, split: str) -> Sequence[str]:
        """Return the names of the classes of a split in alphabetical order, without reading its images."""
        return list(self._classes(split))

    def pool(self, split: str) -> ClassPool:
        """Return the classes of a split, by name in alphabetical order; raise `DataError` if they are not there."""
        if split not in self._pools:
            classes, config = self._classes(split), self.config
            tree = self._files()[0]
            places = [[(tree, name) for name in names] for names in classes.values()]
            images = TreeImages(places, config.size, config.resample, colour="rgb")
            moves = split == "train" and (config.shift or config.tilt)
            self._pools[split] = ClassPool(
                images if config.mode == "on-demand" else self._cached(split, images)["images"],
                list(classes),
                sizes=images.sizes,
                augment=partial(jitter, shift=config.shift, angle=config.tilt) if moves else None,
            )
        return self._pools[split]

    def _cached(self, split: str, images: TreeImages) -> Mapping[str, Any]:
        """Return the decoded images of a split, from the cache if possible."""
        tree = self._files()[0]
        digest = hashlib.sha256()
        for row in images.places:
            digest.update(os.fsencode("\0".join(["", *(name for _, name in row)])))
        key = self.config.model_dump(include={"size", "resample"})
        key |= {"source": f"{tree.path.resolve()} {tree.stamp()}", "files": digest.hexdigest()}
        return load_or_build(f"{self.folder}-{split}-{images.size}", key, lambda: {"images": images.all()})

    def _classes(self, split: str) -> dict[str, list[str]]:
        """Return the images of each class of a split; raise `DataError` if it has none."""
        check_split(split, SPLITS, self.folder)
        tree, layout, splits = self._files()
        if not splits[split]:
            raise DataError(
                f"there are no {split} classes", where=f"{tree.path}: {layout}", remedy=f"add them: {LAYOUTS}"
            )
        return splits[split]

    def _files(self) -> tuple[Tree, Layout, Splits]:
        """Return the files, their layout and the images of each class; raise `DataError` unless they are complete."""
        if self._found is None:
            tree = open_tree(self.root, self.folder)
            if tree is None:
                what = f"the images of {self.folder} are missing: no folder {self.folder} and no {self.folder}.zip"
                self._refuse(self.root, what)
            layout, splits = find_classes(tree, self.folder, self.inner)
            if self.config.complete and (problems := self.contents.problems(splits)):
                more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
                raise DataError(
                    f"the copy of {self.folder} is not complete: it has {'; '.join(problems[:3])}{more}",
                    where=f"{tree.path}: {layout}",
                    remedy=f"complete it ({self.source}), or set dataset.complete=false to use what is there",
                )
            self._found = tree, layout, splits
        return self._found

    @classmethod
    def fetch(cls, root: Path, progress: Progress | None = None) -> list[Path]:
        """Raise `DataError`, which says where to get the images: there is no archive that can be downloaded."""
        cls._refuse(root, f"{cls.folder} cannot be fetched: there is no zip archive at a fixed address")

    @classmethod
    def _refuse(cls, root: Path, what: str) -> NoReturn:
        raise DataError(
            what,
            where=str(root / cls.folder),
            remedy=f"{cls.source}. Put the files into the folder {root / cls.folder} (METAFORGE_DATA names the folder "
            f"above it) in one of these layouts: {LAYOUTS}",
        )
