"""Checks of data sets that number their classes, and that draw tasks of given classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import Dataset, Examples, Task, TaskShape
from metaforge.errors import DataError
from metaforge.testing.bench import difference
from metaforge.testing.check import check
from metaforge.testing.checks.datasets import check_examples, splits_of
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject

EPISODES = 20
# Of more classes than these, no episode of all classes is sampled.
MOST_CLASSES = 5000


@check("dataset")
def classes(subject: Subject) -> None:
    """Each class has one number in all episodes, below the number of classes in `facts`; or no class has a number."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    training = dataset.spec("train", shape).classes
    for split in splits_of(subject, dataset):
        found = dataset.spec(split, shape).classes
        assert found == training, (
            f"the spec of {split} tasks has classes = {found}, that of train tasks {training}; give the number of"
            " training classes in both"
        )
        batch = dataset.sample(split, shape, 0, EPISODES, seed=0)
        assert isinstance(batch.classes, Tensor) == (training > 0), (
            f"spec has classes = {training}, but sample returns {'tasks with' if training == 0 else 'no'} class"
            " numbers; give the number of training classes in the spec and Task.classes, or neither"
        )
        if training:
            _check_numbers(dataset, split, batch)


def _check_numbers(dataset: Dataset, split: str, batch: Task) -> None:
    """Check the class numbers of a batch of episodes of a split, and of two episodes of all its classes."""
    count = dict(dataset.facts(split)).get("classes")
    assert isinstance(count, int), (
        f"the facts of {split} must have the number of classes under 'classes', because its tasks have class numbers"
    )
    training = dataset.spec("train", TaskShape(2, 1, 1)).classes
    assert split != "train" or count == training, (
        f"spec has classes = {training}, but the facts of train have {count}; make them agree"
    )
    _check_range(batch, count)
    batches = [batch]
    whole = TaskShape(count, 1, 1)
    if 2 <= count <= MOST_CLASSES and _is_feasible(dataset, split, whole):
        batches.append(dataset.sample(split, whole, 0, 2, seed=0))
        _check_range(batches[-1], count)
    _check_consistent(one_task(b, index) for b in batches for index in range(len(b.support.x)))


def _is_feasible(dataset: Dataset, split: str, shape: TaskShape) -> bool:
    try:
        dataset.spec(split, shape)
    except DataError:
        return False
    return True


def _check_range(batch: Task, count: int) -> None:
    """Check type, shape, range and distinctness of the class numbers `[episodes, ways]`."""
    numbers = batch.classes
    assert isinstance(numbers, Tensor), "every batch of tasks must have class numbers"
    shape = [len(batch.support.x), int(batch.query.y.max()) + 1]
    assert (numbers.dtype, list(numbers.shape)) == (torch.int64, shape), (
        f"Task.classes is {numbers.dtype} of shape {list(numbers.shape)}; return int64 of shape {shape}"
    )
    assert not bool(((numbers < 0) | (numbers >= count)).any()), (
        f"class numbers are {int(numbers.min())} to {int(numbers.max())}; number the {count} classes from 0"
    )
    assert bool((numbers.sort(-1).values.diff(dim=-1) > 0).all()), (
        "two labels of an episode have the same class number; give each class its own number"
    )


def _check_consistent(tasks: Iterable[Task]) -> None:
    """Check that an example has the same class number in every task; some examples of two classes may be equal."""
    numbers: dict[bytes, set[int]] = {}
    repeated: set[bytes] = set()
    for task in tasks:
        in_task: dict[bytes, int] = {}
        for part in (task.support, task.query):
            labels = torch.as_tensor(task.classes)[part.y].tolist()
            in_task |= dict(zip(_digests(part), labels, strict=True))
        repeated |= numbers.keys() & in_task.keys()
        for digest, number in in_task.items():
            numbers.setdefault(digest, set()).add(number)
    different = [digest for digest in repeated if len(numbers[digest]) > 1]
    assert len(different) <= 0.1 * len(repeated), (
        f"{len(different)} of {len(repeated)} examples have several class numbers; a class has the same number in every"
        " episode: its number in the split, not its label"
    )


def _digests(part: Examples) -> list[bytes]:
    """Return a digest of the input of each example of one task."""
    rows = part.x.reshape(len(part.x), -1).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


@check("dataset")
def draw(subject: Subject) -> None:
    """If `class_sizes` has the sizes of classes, `draw` returns tasks of given classes and numbers of examples."""
    dataset = subject.build_dataset()
    for split in splits_of(subject, dataset):
        sizes = [*dataset.class_sizes(split)]
        if not sizes:
            continue
        count = dict(dataset.facts(split)).get("classes")
        assert count == len(sizes), (
            f"class_sizes has {len(sizes)} sizes for {split}, but facts has {count} classes; give one size per class"
        )
        usable = sorted((number for number, size in enumerate(sizes) if size >= 2), key=lambda number: sizes[number])
        assert len(usable) >= 2, f"{split} needs at least two classes of two examples"
        # The largest class first, so that the labels are not in the order of the numbers by chance.
        chosen = [usable[-1], usable[0]]
        shots = [min(sizes[usable[-1]] - 1, 7), sizes[usable[0]] - 1]
        _check_drawn(subject, dataset, split, chosen, shots)
        for what, (wrong, more) in {
            f"class {len(sizes)} of {len(sizes)} classes": ([usable[0], len(sizes)], [1, 1]),
            "more shots than a class has examples": (chosen, [shots[0], sizes[usable[0]]]),
        }.items():
            _assert_data_error(dataset, split, wrong, more, what)


def _check_drawn(subject: Subject, dataset: Dataset, split: str, chosen: list[int], shots: list[int]) -> None:
    with assert_generators_unchanged("draw"):
        task = dataset.draw(split, chosen, shots, 1, 3, seed=5)
    spec = dataset.spec(split, TaskShape(2, 1, 1))
    for part, counts in ((task.support, shots), (task.query, [1, 1])):
        check_examples(part, (sum(counts), *spec.x_shape), (sum(counts),), spec)
        found = part.y.bincount(minlength=2).tolist()
        assert found == counts, f"draw returns {found} examples of the labels; {counts} were requested"
    assert torch.equal(torch.as_tensor(task.classes), torch.tensor(chosen)), (
        f"draw returns the classes {task.classes}; return those that were requested, {chosen}"
    )
    shared = {*_digests(task.support)} & {*_digests(task.query)}
    assert not shared, "draw returns an example in both the support and the query set; draw without replacement"
    mismatch = difference(task, subject.build_dataset().draw(split, chosen, shots, 1, 3, seed=5))
    assert not mismatch, f"draw returns another task when it is called again: {mismatch}; derive it from its arguments"
    others = [dataset.draw(split, chosen, shots, 1, number, seed=seed) for number, seed in ((4, 5), (3, 6))]
    assert all(difference(task, other) for other in others), (
        "draw returns equal tasks for different numbers or seeds; derive the random numbers from seed, split and number"
    )
    sampled = dataset.sample(split, subject.episode_shape(), 0, EPISODES, seed=0)
    _check_consistent([task, *(one_task(sampled, index) for index in range(EPISODES))])


def _assert_data_error(dataset: Dataset, split: str, chosen: Sequence[int], shots: Sequence[int], what: str) -> None:
    try:
        dataset.draw(split, chosen, shots, 1, 0, seed=0)
    except DataError:
        return
    except Exception as error:
        raise AssertionError(f"for {what} draw raises {type(error).__name__}: {error}; raise DataError") from error
    raise AssertionError(f"draw accepts {what}; raise DataError")


@check("dataset", name="class-names")
def class_names(subject: Subject) -> None:
    """`class_names` returns different strings for every split, or none at all, and the same ones again."""
    dataset = subject.build_dataset()
    for split in splits_of(subject, dataset):
        names = dataset.class_names(split)
        valid = isinstance(names, Sequence) and not isinstance(names, str) and all(type(name) is str for name in names)
        assert valid, f"class_names must return a sequence of strings, but for {split} it returns {names!r:.100}"
        assert all(names), f"a class of {split} has an empty name; name every class, or return no names"
        assert len({*names}) == len(names), f"two classes of {split} have one name; give every class its own"
        again = list(subject.build_dataset().class_names(split))
        assert again == list(names), f"a new instance gives the classes of {split} other names, or another order"
