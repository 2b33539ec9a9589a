"""What a data set must do: episodes that are values, true to their spec, with nothing shared between splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import Dataset, Examples, Task, TaskShape
from metaforge.errors import ConfigError, DataError
from metaforge.testing.bench import difference
from metaforge.testing.check import check
from metaforge.testing.global_state import untouched_generators
from metaforge.testing.subject import Subject

SPLITS = ("train", "val", "test")
MANY = 200
ABSURD = 10**7


def _splits(subject: Subject, dataset: Dataset) -> list[str]:
    """Return the usual splits that a data set has; it may lack one to validate on."""
    found = []
    for split in SPLITS:
        try:
            dataset.spec(split, subject.episodes())
        except (ConfigError, DataError) as error:
            if split != "val":
                raise AssertionError(f"there is no split {split!r} for {tuple(subject.episodes())}: {error}") from error
        else:
            found.append(split)
    return found


@check("dataset")
def spec(subject: Subject) -> None:
    """Every split's episodes have the kind, the shapes and the finite numbers that `spec` promises."""
    dataset, shape = subject.dataset(), subject.episodes()
    for split in _splits(subject, dataset):
        promised = dataset.spec(split, shape)
        assert promised.kind == subject.cls.kind, f"spec says {promised.kind}, the class {subject.cls.kind}"
        assert promised.shape == shape, f"spec says {tuple(promised.shape)} where {tuple(shape)} was asked for"
        batch = dataset.sample(split, shape, 0, 3, seed=0)
        for part, each in zip(batch, (shape.shots, shape.queries), strict=True):
            lead = (3, shape.ways * each)
            _check_examples(part, (*lead, *promised.x_shape), lead, promised.outputs, promised.kind)


def _check_examples(part: Examples, x_shape: tuple[int, ...], lead: tuple[int, ...], outputs: int, kind: str) -> None:
    x, y = part
    assert x.shape == x_shape, f"x has the shape {list(x.shape)}; spec promises {list(x_shape)}"
    fine = (x.dtype == torch.uint8 or x.is_floating_point()) and bool(x.isfinite().all())
    assert fine, f"x is {x.dtype}, or not finite; give bytes or finite floats"
    if kind == "regression":
        assert y.shape == (*lead, outputs), f"y has the shape {list(y.shape)}; spec promises {[*lead, outputs]}"
        fine = y.is_floating_point() and bool(y.isfinite().all())
        assert fine, f"y is {y.dtype}, or not finite; give finite floats"
        return
    fine = y.shape == lead and y.dtype == torch.int64
    assert fine, f"y is {y.dtype} {list(y.shape)}; give int64 {list(lead)}"


def _regression(subject: Subject) -> str:
    return "its tasks are regression, without labels" if subject.cls.kind == "regression" else ""


@check("dataset", unless=_regression)
def labels(subject: Subject) -> None:
    """Every class of an episode appears under its label 0 … ways - 1, exactly shots and queries times."""
    dataset, shape = subject.dataset(), subject.episodes()
    for split in _splits(subject, dataset):
        batch = dataset.sample(split, shape, 0, 20, seed=0)
        for name, part, each in (("support", batch.support, shape.shots), ("query", batch.query, shape.queries)):
            wanted = torch.arange(shape.ways).repeat_interleave(each).expand(20, -1)
            assert torch.equal(part.y.sort(-1).values, wanted), (
                f"the {name} labels of {split} are not {each} of each of 0 to {shape.ways - 1}"
            )


@check("dataset")
def episodes(subject: Subject) -> None:
    """Episode i is a value: the same alone, in a batch, in any order and from a new instance; another is another."""
    shape, dataset = subject.episodes(), subject.dataset()
    with untouched_generators("sample"):
        batch = dataset.sample("train", shape, 3, 4, seed=5)
    alone = [dataset.sample("train", shape, i, 1, seed=5) for i in (6, 3, 5)]
    fresh = subject.dataset().sample("train", shape, 5, 1, seed=5)
    for index, found in ((3, alone[0]), (0, alone[1]), (2, alone[2]), (2, fresh)):
        said = difference(one_task(batch, index), one_task(found))
        assert not said, (
            f"episode {3 + index} is another one when it is drawn otherwise: {said}; make it a function of seed, split"
            " and number alone"
        )
    twin = one_task(batch, 0)
    others = {"number": one_task(batch, 1), "seed": one_task(dataset.sample("train", shape, 3, 1, seed=6))}
    for what, other in others.items():
        assert difference(twin, other), f"another {what} gives the same episode; draw from seed and number"


@check("dataset")
def splits(subject: Subject) -> None:
    """No example of one split appears in another, over hundreds of episodes."""
    dataset = subject.dataset()
    seen: dict[bytes, str] = {}
    for split in _splits(subject, dataset):
        batch = dataset.sample(split, subject.episodes(), 0, MANY, seed=0)
        mine = {example for part in batch for example in _examples(part, subject.cls.kind)}
        shared = [example for example in mine if example in seen]
        assert not shared, f"{len(shared)} examples of {split} are in {seen[shared[0]]} too; divide before sampling"
        seen |= dict.fromkeys(mine, split)


@check("dataset")
def apart(subject: Subject) -> None:
    """Within an episode no query example is a support example."""
    dataset = subject.dataset()
    for split in _splits(subject, dataset):
        batch = dataset.sample(split, subject.episodes(), 0, 50, seed=0)
        for index in range(50):
            task: Task = tree_map(lambda leaf, i=index: leaf[i : i + 1], batch)
            support, query = (set(_examples(part, subject.cls.kind)) for part in task)
            assert not support & query, f"episode {index} of {split} asks for an example of its support set"


def _examples(part: Examples, kind: str) -> Iterator[bytes]:
    """Yield a digest of every example of a batch: of its input, and in regression of its target too."""
    x, y = (_rows(leaf) for leaf in part)
    rows = torch.cat([x, y], -1) if kind == "regression" else x
    for row in rows.contiguous().numpy():
        yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _rows(leaf: Tensor) -> Tensor:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], -1)


@check("dataset", name="too-large")
def too_large(subject: Subject) -> None:
    """A shape that no data can fill is refused with `DataError`, by `spec` and by `sample`."""
    dataset, shape = subject.dataset(), subject.episodes()
    shapes = [shape._replace(ways=ABSURD)]
    if subject.cls.kind == "classification":
        shapes += [shape._replace(shots=ABSURD), shape._replace(queries=ABSURD)]
    for asked in shapes:
        _assert_refused(lambda a=asked: dataset.spec("train", a), asked)  # type: ignore[misc]
        _assert_refused(lambda a=asked: dataset.sample("train", a, 0, 1, seed=0), asked)  # type: ignore[misc]


def _assert_refused(ask: Callable[[], object], shape: TaskShape) -> None:
    what = f"{shape.ways} ways, {shape.shots} shots and {shape.queries} queries"
    try:
        ask()
    except DataError:
        return
    except Exception as error:
        raise AssertionError(f"{what} raise {type(error).__name__}: {error}; raise DataError") from error
    raise AssertionError(f"{what} are accepted; raise DataError and name the largest shape that is possible")


@check("dataset", name="unknown-split")
def unknown_split(subject: Subject) -> None:
    """A split that does not exist is refused with `DataError` or `ConfigError`."""
    dataset, shape = subject.dataset(), subject.episodes()
    try:
        dataset.spec("no-such-split", shape)
    except (ConfigError, DataError):
        return
    except Exception as error:
        raise AssertionError(f"an unknown split raises {type(error).__name__}: {error}; raise DataError") from error
    raise AssertionError("a split called 'no-such-split' is accepted; raise DataError and name those that exist")


@check("dataset")
def facts(subject: Subject) -> None:
    """`facts` tells plain values by name: texts and numbers, for every split."""
    dataset = subject.dataset()
    for split in _splits(subject, dataset):
        found = dict(dataset.facts(split))
        odd = [name for name, value in found.items() if not (type(name) is str and type(value) in (str, int, float))]
        assert not odd, f"facts of {split} that are no plain values: {', '.join(map(str, odd))}; give str, int or float"
