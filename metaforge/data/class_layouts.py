"""Finds the classes of each split in the files of a data set, in the layouts that few-shot image data sets have."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from metaforge.data.trees import Tree
from metaforge.errors import DataError, nearest, shown
from metaforge.system.untrusted import parse_json

SPLITS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
LAYOUTS = (
    "(1) train/<class>/<image>, val/… and test/…; (2) images/<image>, and lists of images train.csv, val.csv and "
    "test.csv with the header filename,label; (3) images/<class>/<image>, and lists of classes train.txt, val.txt and "
    "test.txt; (4) images/<class>/<image>, and lists of images base.json, val.json and novel.json. The lists are "
    "beside the folder images, in a folder splits, or in a folder in splits; the folder images may be called data"
)
"""The layouts that `find_classes` reads, for the remedy of an error."""

Splits = dict[str, dict[str, list[str]]]
"""The names of the images in the tree, by split and class."""

_IMAGE_FOLDERS = ("images", "data")
_PICKLES = (".pkl", ".pickle", ".p")
_LISTS = {f"{split}.{form}": (form, split) for form in ("csv", "txt") for split in SPLITS} | {
    f"{name}.json": ("json", split) for name, split in zip(("base", "val", "novel"), SPLITS, strict=True)
}


class Layout(NamedTuple):
    """Where the classes of the splits are written: in the names of folders, or in lists beside a folder of images."""

    form: str
    """`folders`, or the form of the lists: `csv`, `txt` or `json`."""
    lists: Mapping[str, str]
    """The path of the list of each split that has one."""
    images: str

    def __str__(self) -> str:
        return "folders of splits" if self.form == "folders" else f"{self.images} with {', '.join(self.lists.values())}"


def find_classes(tree: Tree, top: str, inner: str = "") -> tuple[Layout, Splits]:
    """Return the layout of a data set, and the images of each class of each split.

    Classes and images are in alphabetical order, so that every layout of the same images gives the same tasks. Hidden
    files are ignored.

    Args:
        tree: The files of the data set.
        top: The folder that all names in the tree begin with; in a zip archive it may be left out.
        inner: A folder in `top` whose files count as if they were in `top`, such as one that the official archive has.

    Returns:
        The layout, and the names of the images in the tree by split and class; a split that is not there has none.

    Raises:
        DataError: There is no known layout, or more than one; a list is invalid; a file in a folder of a class is not
            an image; or two splits share a class or an image.
    """
    files = _visible(tree, top, inner)
    layouts = _layouts(files)
    if len(layouts) != 1:
        raise _layout_error(tree, top, files, layouts)
    layout, where = layouts[0], str(tree.path)
    if layout.form == "folders":
        found = _from_folders(files, where)
    elif layout.form == "txt":
        found = _from_lists_of_classes(files, layout, tree)
    else:
        found = _from_lists_of_images(files, layout, tree)
    for split, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted(found[split].keys() & found[other].keys()):
            raise DataError(
                f"{len(shared)} classes are in both {split} and {other}, such as {shared[0]!r}",
                where=f"{where}: {layout}",
                remedy="put every class into one split only",
            )
    return layout, {
        split: {name: sorted(images) for name, images in sorted(classes.items())} for split, classes in found.items()
    }


def _visible(tree: Tree, top: str, inner: str) -> dict[str, str]:
    """Return the name in the tree of every file that is not hidden, by its path below `top` or `inner`."""
    files: dict[str, str] = {}
    for name in tree.names:
        path = name.removeprefix(f"{top}/")
        path = path.removeprefix(f"{inner}/") if inner else path
        if path.startswith(".") or "/." in path:
            continue
        if path in files:
            raise DataError(
                f"{path} is there twice: in the folder {inner}, and beside it",
                where=str(tree.path),
                remedy="remove one of the two copies",
            )
        files[path] = name
    return files


def _layouts(files: Iterable[str]) -> list[Layout]:
    """Return every layout that the files have."""
    folders = {path.partition("/")[0] for path in files if "/" in path}
    in_classes = any(path.startswith(tuple(f"{split}/" for split in SPLITS)) for path in files)
    lists: dict[tuple[str, str], dict[str, str]] = {}
    for path in files:
        folder, _, file = path.rpartition("/")
        if file in _LISTS and (folder in ("", "splits") or (folder.startswith("splits/") and folder.count("/") == 1)):
            form, split = _LISTS[file]
            lists.setdefault((form, folder), {})[split] = path
    return [Layout("folders", {}, "")] * in_classes + [
        Layout(form, {split: paths[split] for split in SPLITS if split in paths}, images)
        for images in _IMAGE_FOLDERS
        if images in folders
        for (form, _), paths in lists.items()
    ]


def _layout_error(tree: Tree, top: str, files: Mapping[str, str], layouts: list[Layout]) -> DataError:
    """Return the error for files in no known layout, or in more than one."""
    where = str(tree.path)
    if layouts:
        both = "; ".join(map(str, layouts[:3]))
        return DataError(f"the files have {len(layouts)} layouts: {both}", where=where, remedy="keep one of them")
    if pickles := [path for path in files if path.lower().endswith(_PICKLES)]:
        return DataError(
            f"{pickles[0]} is a pickle; pickles are not read, because reading one can run any code that is in it",
            where=where,
            remedy=f"convert it, with a program that you trust, to images {top}/train/<class>/<image>.png, and the "
            "same for val and test",
        )
    there = sorted({path.partition("/")[0] for path in files})
    listed = f"it has {', '.join(there[:5])}{' and more' if len(there) > 5 else ''}" if there else "it has no files"
    return DataError(
        f"the data set has no known layout: {listed}",
        where=where,
        remedy=f"arrange its files in one of these layouts: {LAYOUTS}. Archives in the folder must be unpacked, and "
        "symbolic links to folders are not followed",
    )


def _from_folders(files: Mapping[str, str], where: str) -> Splits:
    """Return the images `<split>/<class>/<image>`."""
    found: Splits = {split: {} for split in SPLITS}
    for path, name in files.items():
        split, *rest = path.split("/")
        if split in found and rest:
            _check_image(path, f"{split}/<class>/<image>", where)
            found[split].setdefault(rest[0], []).append(name)
    return found


def _from_lists_of_classes(files: Mapping[str, str], layout: Layout, tree: Tree) -> Splits:
    """Return the images `<images>/<class>/<image>` of the classes that text files list, one in a line."""
    folders: dict[str, list[str]] = {}
    for path in files:
        if path.startswith(f"{layout.images}/"):
            folders.setdefault(path.split("/")[1], []).append(path)
    found: Splits = {split: {} for split in SPLITS}
    for split, path in layout.lists.items():
        where = f"{tree.path}: {path}"
        for name in filter(None, map(str.strip, _text(tree, files[path], where).splitlines())):
            if name not in folders:
                raise DataError(
                    f"there are no images of the class {shown(name)}.{nearest(name, folders)}",
                    where=where,
                    remedy=f"put them into {layout.images}/<class>, or remove the line",
                )
            if name in found[split]:
                raise DataError(f"{shown(name)} is listed twice", where=where, remedy="list every class once")
            for image in folders[name]:
                _check_image(image, f"{layout.images}/<class>/<image>", str(tree.path))
            found[split][name] = [files[image] for image in folders[name]]
    return found


def _from_lists_of_images(files: Mapping[str, str], layout: Layout, tree: Tree) -> Splits:
    """Return the images in the folder of images that CSV or JSON files list with their classes."""
    found: Splits = {split: {} for split in SPLITS}
    listed = set[str]()
    for split, path in layout.lists.items():
        where, missing = f"{tree.path}: {path}", list[str]()
        text = _text(tree, files[path], where)
        for image, name in _csv_entries(text, where) if layout.form == "csv" else _json_entries(text, where):
            file = f"{layout.images}/{image}"
            if file not in files:
                missing.append(file)
                continue
            if file in listed:
                raise DataError(f"{shown(file)} is listed twice", where=where, remedy="list every image once")
            if not file.lower().endswith(SUFFIXES):
                raise _not_an_image(file, f"{layout.images}/<image>", where)
            listed.add(file)
            found[split].setdefault(name, []).append(files[file])
        if missing:
            raise DataError(
                f"{len(missing):,} of the images that are listed are missing, such as {shown(missing[0])}",
                where=where,
                remedy="put them there, or remove them from the list",
            )
    return found


def _csv_entries(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield the images of a CSV file and their classes."""
    form = "write a CSV file whose header is filename,label, and in every line the file of an image and its class"
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(rows, [])
        if [cell.strip() for cell in header] != ["filename", "label"]:
            raise DataError(f"the header is {shown(','.join(header))}, not filename,label", where=where, remedy=form)
        for row in rows:
            cells = [cell.strip() for cell in row]
            if len(cells) != 2 or not all(cells):
                raise DataError(f"line {rows.line_num} is {shown(row)}", where=where, remedy=form)
            yield cells[0], cells[1]
    except csv.Error as error:
        raise DataError(f"line {rows.line_num} is not valid: {error}", where=where, remedy=form) from error


def _json_entries(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield the images of a JSON file, as `class folder/file`, and their classes.

    Only the last two parts of a path count: these files are written with the absolute paths of another machine.
    """
    form = (
        'write an object with "label_names", "image_names" and "image_labels": the names of classes, the paths of '
        "images, and for each of them the number of its class, from 0"
    )
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the list is not valid JSON: {error}", where=where, remedy=form) from error
    value = value if isinstance(value, dict) else {}
    names, images, labels = (
        _values(value.get(key), kind)
        for key, kind in (("label_names", str), ("image_names", str), ("image_labels", int))
    )
    if not names or not images or len(images) != len(labels):
        raise DataError("the list does not have names, images and labels as it should", where=where, remedy=form)
    for image, label in zip(images, labels, strict=True):
        if not 0 <= label < len(names):
            raise DataError(f"{shown(image)} has the label {label} of {len(names)}", where=where, remedy=form)
        yield "/".join(image.split("/")[-2:]), names[label]


def _values(values: object, kind: type) -> list[Any]:
    """Return a list of values of exactly one type, or an empty list if it is anything else."""
    return values if isinstance(values, list) and all(type(value) is kind for value in values) else []


def _text(tree: Tree, name: str, where: str) -> str:
    try:
        return tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"the list is not UTF-8 text: {error}", where=where, remedy="save it as UTF-8 text") from error


def _check_image(path: str, expected: str, where: str) -> None:
    """Raise `DataError` unless a file is an image by its name, in the folder of a class."""
    if path.count("/") != 2 or not path.lower().endswith(SUFFIXES):
        raise _not_an_image(path, expected, where)


def _not_an_image(path: str, expected: str, where: str) -> DataError:
    return DataError(
        f"{shown(path)} is not an image {expected}",
        where=where,
        remedy=f"remove the file; images end in one of {', '.join(SUFFIXES)}",
    )
