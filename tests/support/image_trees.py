"""Small colour data sets in every layout of class folders, and trees that have the names of many files only."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

SMALL = {"train": ["n1", "n2", "n3", "n4"], "val": ["n5", "n6", "n7"], "test": ["n8", "n9", "n10", "n11"]}
IMAGES = 6
JSON = {"train": "base", "val": "val", "test": "novel"}
Files = dict[str, bytes]


def picture(klass: str, number: int, size: int = 8, form: str = "PNG") -> bytes:
    """Return an image file whose colours differ from those of all other classes and numbers."""
    code = sum(ord(letter) * 7**place for place, letter in enumerate(klass)) % 211
    image = Image.new("RGB", (size, size), (code, 20 + 30 * number, 200 - code // 2))
    image.putpixel((number % size, code % size), (255, 255, 0))
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def images_of(klass: str, images: int = IMAGES) -> Files:
    """Return the images of a class by their file names, which differ from those of other classes."""
    return {f"{klass}_{number}.png": picture(klass, number) for number in range(images)}


def class_folders(splits: Mapping[str, list[str]] = SMALL) -> Files:
    """Return a data set in the layout `<split>/<class>/<image>`."""
    return {
        f"{split}/{klass}/{name}": data
        for split, classes in splits.items()
        for klass in classes
        for name, data in images_of(klass).items()
    }


def csv_lists(lists: str = "", images: str = "images") -> Files:
    """Return a data set in the layout `<images>/<image>` with lists of images in CSV files."""
    files = {f"{images}/{name}": data for names in SMALL.values() for k in names for name, data in images_of(k).items()}
    for split, classes in SMALL.items():
        lines = [f"{name},{klass}" for klass in classes for name in images_of(klass)]
        files[f"{lists}{split}.csv"] = "\n".join(["filename,label", *lines, ""]).encode()
    return files


def class_lists(lists: str = "", images: str = "images") -> Files:
    """Return a data set in the layout `<images>/<class>/<image>` with lists of classes."""
    return _in_classes(images) | {
        f"{lists}{split}.txt": "\n".join([*classes, ""]).encode() for split, classes in SMALL.items()
    }


def json_lists(lists: str = "", images: str = "images") -> Files:
    """Return a data set in the layout `<images>/<class>/<image>` with lists of images in JSON files."""
    names = sorted(name for classes in SMALL.values() for name in classes)
    files = _in_classes(images)
    for split, classes in SMALL.items():
        pairs = [
            (f"/home/another/set/images/{klass}/{name}", names.index(klass))
            for klass in reversed(classes)
            for name in images_of(klass)
        ]
        value = {
            "label_names": names,
            "image_names": [image for image, _ in pairs],
            "image_labels": [label for _, label in pairs],
        }
        files[f"{lists}{JSON[split]}.json"] = json.dumps(value).encode()
    return files


def _in_classes(images: str) -> Files:
    return {
        f"{images}/{klass}/{name}": data
        for classes in SMALL.values()
        for klass in classes
        for name, data in images_of(klass).items()
    }


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder, and return the folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


class NamesOnly:
    """A tree of many files with one content, which are nowhere on disk."""

    def __init__(self, names: list[str], content: bytes = b"") -> None:
        self.path, self.names, self.content = Path("nowhere"), sorted(names), content

    def read(self, name: str) -> bytes:
        return self.content

    def stamp(self) -> str:
        return "unchanged"


def complete_names(classes: Mapping[str, int], sizes: Mapping[str, list[int]] | int) -> list[str]:
    """Return the names of class folders with a number of classes and images in each split.

    `sizes` is the number of images of every class, or those of the classes of each split.
    """
    return [
        f"{split}/{split}{number:03d}/{image:04d}.jpg"
        for split, count in classes.items()
        for number in range(count)
        for image in range(sizes if isinstance(sizes, int) else sizes[split][number])
    ]
