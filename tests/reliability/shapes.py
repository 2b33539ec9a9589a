"""Row 14: data sets that are too small for the task, in the wrong place, or that violate their contract."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import unittest.mock
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typer.testing import CliRunner

from metaforge.authoring.protocols import Dataset, Examples, Options, Task, TaskShape, TaskSpec
from metaforge.cli.app import app
from metaforge.registry.scan import scan
from tests.reliability.archives import CLASSES, TOP, small_omniglot
from tests.reliability.rows import Measured, Workspace, row

FAULTS: dict[str, Callable[[Task, TaskShape], Any]] = {
    "none": lambda task, shape: task,
    "flat images": lambda task, shape: changed(task, lambda x, y: (x.flatten(2), y)),
    "three channels": lambda task, shape: changed(task, lambda x, y: (x.expand(-1, -1, 3, -1, -1), y)),
    "other size": lambda task, shape: changed(task, lambda x, y: (x[..., :20], y)),
    "no task dimension": lambda task, shape: changed(task, lambda x, y: (x[0], y[0])),
    "images of int32": lambda task, shape: changed(task, lambda x, y: (x.int(), y)),
    "images of booleans": lambda task, shape: changed(task, lambda x, y: (x > 0, y)),
    "complex images": lambda task, shape: changed(task, lambda x, y: (x.cfloat(), y)),
    "NaN pixel": lambda task, shape: changed(task, lambda x, y: (with_pixel(x, float("nan")), y)),
    "infinite pixel": lambda task, shape: changed(task, lambda x, y: (with_pixel(x, float("inf")), y)),
    "labels from 1": lambda task, shape: changed(task, lambda x, y: (x, y + 1)),
    "negative labels": lambda task, shape: changed(task, lambda x, y: (x, y - 1)),
    "label gap": lambda task, shape: changed(task, lambda x, y: (x, torch.where(y == 1, 0, y))),
    "labels of a whole data set": lambda task, shape: changed(task, lambda x, y: (x, y * 100)),
    "labels of floats": lambda task, shape: changed(task, lambda x, y: (x, y.float())),
    "labels of int32": lambda task, shape: changed(task, lambda x, y: (x, y.int())),
    "one-hot labels": lambda task, shape: changed(task, lambda x, y: (x, torch.nn.functional.one_hot(y))),
    "too few examples": lambda task, shape: changed(task, lambda x, y: (x[:, 1:], y[:, 1:])),
    "no examples": lambda task, shape: changed(task, lambda x, y: (x[:, :0], y[:, :0])),
    "arrays": lambda task, shape: changed(task, lambda x, y: (x.numpy(), y.numpy())),
    "plain tuples": lambda task, shape: tuple(tuple(part) for part in (task.support, task.query)),
    "nothing": lambda task, shape: None,
    "mixed sizes": lambda task, shape: torch.stack([torch.zeros(1, 28, 28), torch.zeros(1, 20, 28)]),
    "sample larger than population": lambda task, shape: random.Random(0).sample(range(3), 5),
}
# Faults of the spec.
SPECS: dict[str, Callable[[TaskSpec], Any]] = {
    "spec of another kind": lambda spec: TaskSpec("regression", spec.x_shape, 1, spec.shape),
    "spec of another shape": lambda spec: TaskSpec(spec.kind, spec.x_shape, 5, TaskShape(2, 2, 2)),
    "spec of nothing": lambda spec: None,
    "spec that raises": lambda spec: {}["labels"],
}


def changed(task: Task, change: Callable[[Any, Any], tuple[Any, Any]]) -> Task:
    """Return a task with the same change of inputs and labels in the support and the query set."""
    support, query = (Examples(*change(part.x, part.y)) for part in (task.support, task.query))
    return task._replace(support=support, query=query)


def with_pixel(x: torch.Tensor, value: float) -> torch.Tensor:
    """Return images as floats in [0, 1], with one pixel set to a value."""
    images = x.float() / 255
    images[0, -1, 0, 3, 3] = value
    return images


class FaultyOptions(Options):
    """The fault of the data set: a name of `FAULTS` or `SPECS`."""

    fault: str = "none"


class FaultyDataset(Dataset):
    """A third-party data set with one fault."""

    Config = FaultyOptions
    kind = "classification"
    reference = note = ""
    defaults: Mapping[Any, Mapping[str, Any]] = {"classification": {"backbone": {"name": "conv4"}}}

    def __init__(self, config: FaultyOptions, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        """Return the spec, with the fault if it is one of `SPECS`."""
        spec = TaskSpec("classification", (1, 28, 28), shape.ways, shape)
        faulty_spec: TaskSpec = SPECS.get(self.config.fault, lambda same: same)(spec)
        return faulty_spec

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        """Return tasks of noise, with the fault if it is one of `FAULTS`."""
        generator = torch.Generator().manual_seed(seed + first)
        parts = []
        for each in (shape.shots, shape.queries):
            y = torch.arange(shape.ways).repeat_interleave(each).expand(count, -1)
            x = torch.randint(0, 256, (*y.shape, 1, 28, 28), generator=generator, dtype=torch.uint8)
            parts.append(Examples(x, y))
        faulty_task: Task = FAULTS.get(self.config.fault, FAULTS["none"])(Task(*parts), shape)
        return faulty_task

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return no facts."""
        return {}


def unpack(archive: Path) -> Path:
    """Replace an archive by its contents, and return the extracted folder."""
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            path = archive.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read(name))
    archive.unlink()
    return archive.parent / TOP


def character(archive: Path, number: int = 1) -> Path:
    """Unpack the archive, and return the folder of one character."""
    return unpack(archive) / "Runes" / f"character{number:02d}"


def image(archive: Path) -> Path:
    """Unpack the archive, and return the file of one image."""
    return character(archive) / "0001_01.png"


def replace(path: Path, put: Callable[[Path], object]) -> None:
    """Remove a file or folder, and put something else in its place."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(path)


def picture(size: tuple[int, int], mode: str = "L") -> bytes:
    """Return a blank image as PNG."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def nest_deeper(archive: Path) -> None:
    """Put a folder between the top folder and the alphabets."""
    folder = unpack(archive)
    (folder / "Runes").rename(folder.parent / "aside")
    (folder / "more" / "deeper").mkdir(parents=True)
    (folder.parent / "aside").rename(folder / "more" / "deeper" / "Runes")


def write_split_lists(archive: Path, **content: bytes) -> None:
    """Write a file with the class names of each split."""
    (archive.parent / "splits").mkdir()
    for split, data in content.items():
        (archive.parent / "splits" / f"mine-{split}.txt").write_bytes(data)


# For each case, the change of a valid archive, and further settings of the run.
PLACES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no archive": (lambda a: a.unlink(), ()),
    "no folder": (lambda a: shutil.rmtree(a.parent), ()),
    "a file where the folder should be": (lambda a: replace(a.parent, lambda p: p.write_bytes(b"")), ()),
    "a folder where the archive should be": (lambda a: replace(a, lambda p: p.mkdir()), ()),
    "an empty folder": (lambda a: replace(unpack(a), lambda p: p.mkdir()), ()),
    "an empty class": (lambda a: replace(character(a), lambda p: p.mkdir()), ()),
    "a class of 19": (lambda a: image(a).unlink(), ()),
    "a class of 21": (lambda a: shutil.copy(path_ := image(a), path_.with_name("0001_21.png")), ()),
    "one class missing": (lambda a: shutil.rmtree(character(a)), ()),
    "one additional class": (lambda a: shutil.copytree(path_ := character(a), path_.with_name("character99")), ()),
    "folders too deep": (nest_deeper, ()),
    "no images": (lambda a: [path.rename(path.with_suffix(".txt")) for path in unpack(a).rglob("*.png")], ()),
    "an unreadable image": (lambda a: image(a).write_bytes(b"<html>"), ()),
    "an empty image": (lambda a: image(a).write_bytes(b""), ()),
    "a truncated image": (lambda a: (path_ := image(a)).write_bytes(path_.read_bytes()[:60]), ()),
    "a folder named like an image": (lambda a: replace(image(a), lambda p: p.mkdir()), ()),
    "a pipe named like an image": (lambda a: replace(image(a), os.mkfifo), ()),
    "a link to a missing file": (lambda a: replace(image(a), lambda p: p.symlink_to("nothing")), ()),
    "a link to itself": (lambda a: replace(image(a), lambda p: p.symlink_to(p)), ()),
    "a link out of the folder": (lambda a: replace(image(a), lambda p: p.symlink_to("/etc/hostname")), ()),
    "an escape sequence in a damaged file's name": (
        lambda a: (path_ := image(a)).rename(path_.with_name("a\x1b[2Jb.png")).write_bytes(b"<html>"),
        (),
    ),
    "a line break in a damaged file's name": (
        lambda a: (path_ := image(a)).rename(path_.with_name("a\nError: all is fine\n.png")).write_bytes(b"<html>"),
        (),
    ),
    "an escape sequence in a class of 19": (
        lambda a: (image(a).unlink(), (path_ := a.parent / TOP / "Runes" / "character01").rename(f"{path_}\x1b[31m")),
        (),
    ),
    "a link to a folder above": (lambda a: replace(character(a), lambda p: p.symlink_to(p.parent.parent)), ()),
    "a link to a device": (lambda a: replace(image(a), lambda p: p.symlink_to("/dev/zero")), ()),
    "split overlap": (
        lambda a: write_split_lists(a, train=b"Runes/character01\nRunes/character02", test=b"Runes/character02"),
        ("dataset.split=file", "dataset.split_file=splits/mine"),
    ),
    "split of unknown classes": (
        lambda a: write_split_lists(a, train=b"Runes/character77", test=b"Runes/character01"),
        ("dataset.split=file", "dataset.split_file=splits/mine"),
    ),
    "split that is not text": (
        lambda a: write_split_lists(a, train=b"\xff\xfe\0x", test=b"x"),
        ("dataset.split=file", "dataset.split_file=splits/mine"),
    ),
    "split that is a folder": (lambda a: None, ("dataset.split=file", "dataset.split_file=..")),
    "split of a long name": (lambda a: None, ("dataset.split=file", f"dataset.split_file={'x' * 3000}")),
    "split of a device": (
        lambda a: [(a.parent / f"dev-{s}.txt").symlink_to("/dev/zero") for s in ("train", "test")],
        ("dataset.split=file", "dataset.split_file=dev"),
    ),
    "more ways than classes": (lambda a: None, ("task.ways=7",)),
    "more images than a class has": (lambda a: None, ("task.shots=10", "task.queries=11")),
    "all alphabets held out": (lambda a: None, ("dataset.holdout=1",)),
    "no classes to validate on": (lambda a: None, ("train.validate_every=1",)),
}
# Changes after which the data are unusual but valid.
VALID: dict[str, Callable[[Path], object]] = {
    "valid archives": lambda a: None,
    "a folder": unpack,
    "a hidden folder of images": lambda a: shutil.copytree(
        path_ := character(a), path_.with_name(".ipynb_checkpoints")
    ),
    "a suffix in capitals": lambda a: (path_ := image(a)).rename(path_.with_suffix(".PNG")),
    "mixed sizes": lambda a: image(a).write_bytes(picture((300, 20))),
    "mixed channels": lambda a: image(a).write_bytes(picture((20, 20), "RGBA")),
    "names in Unicode": lambda a: (path_ := image(a)).rename(path_.with_name("ʒ字-é.png")),
    "names of 255 bytes": lambda a: (path_ := image(a)).rename(path_.with_name("n" * 251 + ".png")),
    "names that are not UTF-8": lambda a: (path_ := image(a)).rename(
        os.fsdecode(bytes(path_.parent) + b"/\xff\xfe.png")
    ),
}
GENERATED: dict[str, tuple[str, ...]] = {
    "too many ways": ("glyphs", "task.ways=31", "dataset.train=30", "dataset.test=30"),
    "too few writers": ("glyphs", "dataset.writers=4", "task.shots=2", "task.queries=3"),
    "too many training ways": ("glyphs", "train.ways=900"),
    "too few test classes": ("glyphs", "task.ways=4", "train.ways=2", "dataset.test=3"),
}
# What the message must contain besides a remedy: what was found, and the largest feasible setting.
EXPECTED_TEXT = {
    "more ways than classes": "ways = 6",
    "more images than a class has": "shots = 10, queries = 10",
    "a class of 19": "Runes/character01: 19 images, not 20",
    "too many ways": "ways = 30",
    "too few writers": "shots = 2, queries = 2",
    "too many training ways": "ways = 800",
    "too few test classes": "ways = 3",
    "data set: label gap": "class 1: found 0, needed 1",
    "an empty image": "0001_01.png",
    "an unreadable image": "0001_01.png",
    "a link to a missing file": "0001_01.png",
    "a link out of the folder": "leads out of the folder",
}


def dry_run(dataset: str, *settings: str, learner: str = "protonet") -> tuple[int, str]:
    """Return the exit code and the output of a dry run; the code is -1 for an exception that escapes."""
    small = ("task.ways=2", "task.queries=2", "train.tasks=1", "train.ways=none", "train.shots=none")
    small += ("train.queries=none", "backbone.filters=4", "engine.threads=1")
    arguments = ["train", "--dry-run", "--no-progress", "--learner", learner, "--dataset", dataset]
    settings_by_name = {text.partition("=")[0]: text for text in (*small, *settings)}
    result = CliRunner().invoke(
        app, [*arguments, *(part for text in settings_by_name.values() for part in ("--set", text))]
    )
    escaped = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (-1 if escaped else result.exit_code), result.output


@contextlib.contextmanager
def faulty_registered() -> Iterator[None]:
    """Make the commands find the faulty data set, as if it were installed."""
    wider = scan().with_plugin("dataset", "faulty", FaultyDataset)
    with unittest.mock.patch("metaforge.registry.scan.scan", return_value=wider):
        yield


def cases(folder: Path) -> dict[str, Callable[[], tuple[int, str, set[int]]]]:
    """Return for every case a function that runs it and returns exit code, output and expected exit codes."""

    def placed(name: str, change: Callable[[Path], object], settings: tuple[str, ...], codes: int) -> Any:
        with small_omniglot(folder / name.replace(" ", "-")) as archive:
            change(archive)
            return *dry_run("omniglot", *settings), {codes}

    def written(fault: str, codes: set[int]) -> Any:
        with faulty_registered():
            return *dry_run("faulty", f"dataset.fault={fault}"), codes

    cases_by_name: dict[str, Any] = {}
    for name, (change, settings) in PLACES.items():
        cases_by_name[name] = lambda name=name, change=change, settings=settings: placed(name, change, settings, 3)
    for name, change in VALID.items():
        cases_by_name[f"valid: {name}"] = lambda name=name, change=change: placed(f"valid {name}", change, (), 0)
    for name, settings in GENERATED.items():
        cases_by_name[name] = lambda settings=settings: (*dry_run(*settings), {3})
    cases_by_name["regression of five ways"] = lambda: (*dry_run_sinusoid(), {3})
    for fault in (*FAULTS, *SPECS):
        codes = {0} if fault == "none" else {3} if "pixel" in fault else {4}
        cases_by_name[f"data set: {fault}"] = lambda fault=fault, codes=codes: written(fault, codes)
    return cases_by_name


def dry_run_sinusoid() -> tuple[int, str]:
    """Return exit code and output of a dry run on sine waves with five ways, which regression does not have."""
    result = CliRunner().invoke(app, ["train", "--dry-run", "--learner", "cnp", "--set", "task.ways=5"])
    return result.exit_code, result.output


@row(
    14,
    "data sets that are too small, misplaced or of wrong shape",
    goal="exit code 3 (4 if a data set violates its contract) and the found, needed and largest feasible number; no"
    " traceback",
)
def misshapen_data(workspace: Workspace, *, count: int = 1000) -> Measured:
    """Train on every kind of invalid data, and on data that are unusual but valid."""
    cases_by_name = cases(workspace.folder)
    names = list(cases_by_name)[:count]
    faults: dict[str, str] = {}
    tried = 0
    for index in workspace.indices(len(names)):
        code, output, codes = cases_by_name[names[index]]()
        tried += 1
        helpful = code == 0 or ("Error: " in output and "remedy: " in output and "where: " in output)
        helpful = helpful and EXPECTED_TEXT.get(names[index], "") in output
        if code not in codes or "Traceback" in output or not helpful or "\x1b" in output or "\nError: all" in output:
            faults[names[index]] = f"exit code {code}: {output.strip()[-400:]}"
    return Measured(
        tried == len(names) and not faults,
        f"{tried - len(faults)} of {tried} cases end as expected, with one message and the right exit code",
        {"tried": tried, "classes_of_the_small_set": CLASSES, "faults": faults},
    )
