"""Checks of data sets: reproducible episodes that agree with their spec, and splits that share no example."""

from __future__ import annotations

import hashlib
import itertools

import torch
from torch import Tensor

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION, TaskKind, task_kind
from metaforge.authoring.protocols import Dataset, Examples, TaskShape, TaskSpec
from metaforge.engine.batch import prepare_tasks
from metaforge.errors import ConfigError, ContractError, DataError
from metaforge.testing.bench import difference
from metaforge.testing.check import Skipped, check
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject

SPLITS = ("train", "val", "test")
EPISODES_PER_SPLIT = 200
_TOGETHER = 10
# More ways, shots or queries than any data set can have.
TOO_MANY = 10**7


def splits_of(subject: Subject, dataset: Dataset) -> list[str]:
    """Return the splits for which `spec` accepts the tasks to sample; it may refuse them for val only.

    Every check that samples begins here: after `spec` has refused a task, `sample` may do anything.
    """
    splits = []
    for split in SPLITS:
        try:
            dataset.spec(split, subject.episode_shape())
        except (ConfigError, DataError) as error:
            if split != "val":
                raise AssertionError(
                    f"a data set must have the split {split!r}, but spec raises {type(error).__name__} for tasks of"
                    f" {_counts(subject.episode_shape())}: {error}"
                ) from error
        else:
            splits.append(split)
    return splits


def _counts(shape: TaskShape) -> str:
    return f"{shape.ways} ways, {shape.shots} shots and {shape.queries} queries"


@check("dataset")
def spec(subject: Subject) -> None:
    """The episodes of every split have the kind, shapes and dtypes that `spec` returns, and finite values."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    for split in splits_of(subject, dataset):
        spec = dataset.spec(split, shape)
        kind = task_kind(subject.cls.kind)
        assert spec.kind == kind, (
            f"the kind must be the same everywhere: spec returns {spec.kind.name}, the class has {kind.name}; make the"
            " kind once, and use this object in both"
        )
        assert spec.shape == shape, (
            f"spec must return the task shape it was called with: {tuple(spec.shape)} instead of {tuple(shape)}"
        )
        batch = dataset.sample(split, shape, 0, 3, seed=0)
        for part, per_class in ((batch.support, shape.shots), (batch.query, shape.queries)):
            leading = (3, shape.ways * per_class)
            check_examples(part, (*leading, *spec.x_shape), leading, spec)


def check_examples(part: Examples, x_shape: tuple[int, ...], leading: tuple[int, ...], spec: TaskSpec) -> None:
    """Check inputs of shape `x_shape`, and labels `leading` or the targets of the kind of task."""
    x, y = part
    assert x.shape == x_shape, f"x has the shape {list(x.shape)}, but spec promises {list(x_shape)}; make them agree"
    valid = x.dtype == torch.uint8 or x.is_floating_point()
    assert valid, f"x has the dtype {x.dtype}; return uint8 or a floating dtype"
    assert bool(x.isfinite().all()), "x has values that are not finite; correct or remove these examples"
    if not spec.kind.classes:
        targets = [*leading, *spec.kind.shape_of_target(spec.outputs)]
        assert list(y.shape) == targets, (
            f"y has the shape {list(y.shape)}, but spec promises {targets}; make them agree"
        )
        assert y.is_floating_point(), f"y has the dtype {y.dtype}; return a floating dtype"
        assert bool(y.isfinite().all()), "y has values that are not finite; correct or remove these examples"
        wrong = "" if spec.kind.wrong_targets is None else spec.kind.wrong_targets(y)
        assert not wrong, f"targets of {spec.kind.name} tasks {wrong}; correct `sample`"
        return
    valid = y.shape == leading and y.dtype == torch.int64
    assert valid, f"y is {y.dtype} of shape {list(y.shape)}; return int64 labels of shape {list(leading)}"


@check("dataset", name="task-kind")
def kind_of_task(subject: Subject) -> None:
    """The loss of its kind of task can be differentiated twice; scores and baselines are scalars within the scale."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    spec = dataset.spec("train", shape)
    batch = prepare_tasks(dataset.sample("train", shape, 0, 3, seed=0), torch.device("cpu"), torch.float64)
    y, kind = batch.query.y, spec.kind
    predictions = normal(make_key(0, "predictions"), (3, shape.ways * shape.queries, spec.outputs), torch.float64)
    for name, function in (("loss", kind.loss), ("score", kind.score)):
        one, batched = function(predictions[0], y[0]), torch.func.vmap(function)(predictions, y)
        assert one.shape == (), f"the {name} has the shape {list(one.shape)}; it must be a scalar per task"
        mismatch = difference(one, batched[0], 1e-9)
        assert not mismatch, f"the {name} under vmap differs from that of one task: {mismatch}; use torch functions"
    first = torch.func.grad(kind.loss)(predictions[0], y[0])
    second = torch.func.grad(lambda p: torch.func.grad(kind.loss)(p, y[0]).square().sum())(predictions[0])
    useful = bool(first.isfinite().all() & second.isfinite().all() & first.any())
    assert useful, (
        "the derivatives of the loss by the predictions are zero or not finite; inner loops need the first and second"
    )
    _check_score("score", kind.score(predictions[0], y[0]), kind)
    for name, baseline in (("chance level", kind.chance), ("floor", kind.floor)):
        if baseline is not None:
            _check_score(name, baseline(one_task(batch), spec), kind)


def _check_score(name: str, value: Tensor, kind: TaskKind) -> None:
    """Check that a score is a scalar that the scale of its kind allows."""
    assert value.shape == (), f"the {name} has the shape {list(value.shape)}; it must be a scalar"
    lowest, highest = kind.scale.bounds
    number = float(value)
    allowed = (lowest is None or number >= lowest) and (highest is None or number <= highest)
    assert allowed, (
        f"the {name} is {number:.4g}, but the scale allows {lowest} to {highest} (None: no bound); correct it, or"
        " `percent` and `minimum` of the scale"
    )


def _kind_of(subject: Subject) -> TaskKind:
    """Return the kind of task of a data set; for one without a valid kind, which `contract` reports, the first."""
    try:
        return task_kind(subject.cls.kind)
    except ContractError:
        return CLASSIFICATION


def _has_no_labels(subject: Subject) -> str:
    kind = _kind_of(subject)
    return "" if kind.classes else f"its tasks are {kind.name} tasks, which have no labels"


@check("dataset", skip_reason=_has_no_labels)
def labels(subject: Subject) -> None:
    """In each episode every label from 0 to ways - 1 has exactly as many support and query examples as requested."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    for split in splits_of(subject, dataset):
        batch = dataset.sample(split, shape, 0, 20, seed=0)
        for name, part, per_class in (
            ("support", batch.support, shape.shots),
            ("query", batch.query, shape.queries),
        ):
            expected = torch.arange(shape.ways).repeat_interleave(per_class).expand(20, -1)
            assert torch.equal(part.y.sort(-1).values, expected), (
                f"the {name} set of a {split} episode must have {per_class} examples of each label from 0 to"
                f" {shape.ways - 1}, but has other numbers of examples or other labels; correct `sample`"
            )


@check("dataset")
def episodes(subject: Subject) -> None:
    """An episode depends on seed, split and number only, not on batches, order or instance; other numbers differ."""
    shape, dataset = subject.episode_shape(), subject.build_dataset()
    splits_of(subject, dataset)
    with assert_generators_unchanged("sample"):
        batch = dataset.sample("train", shape, 3, 4, seed=5)
    alone = [dataset.sample("train", shape, i, 1, seed=5) for i in (6, 3, 5)]
    new_instance = subject.build_dataset().sample("train", shape, 5, 1, seed=5)
    for index, episode in ((3, alone[0]), (0, alone[1]), (2, alone[2]), (2, new_instance)):
        mismatch = difference(one_task(batch, index), one_task(episode))
        assert not mismatch, (
            f"episode {3 + index} in a batch differs from the same episode sampled alone or by a new instance:"
            f" {mismatch}; make it a function of seed, split and number only"
        )
    reference = one_task(batch, 0)
    others = {"number": one_task(batch, 1), "seed": one_task(dataset.sample("train", shape, 3, 1, seed=6))}
    for what, other in others.items():
        assert difference(reference, other), (
            f"two episodes that differ in their {what} are equal; derive the random numbers from seed, split and number"
        )


@check("dataset")
def splits(subject: Subject) -> None:
    """No example of one split appears in another split, in hundreds of episodes."""
    dataset = subject.build_dataset()
    split_of: dict[bytes, str] = {}
    for split in splits_of(subject, dataset):
        if dataset.grid(split):
            raise Skipped("its examples are places of a grid with their values, which can be equal in different tasks")
        digests = set().union(*itertools.chain(*_episode_digests(subject, dataset, split, EPISODES_PER_SPLIT)))
        shared = [digest for digest in digests if digest in split_of]
        assert not shared, (
            f"{len(shared)} examples of {split} also appear in {split_of[shared[0]]}; assign classes or examples to"
            " splits before sampling"
        )
        split_of |= dict.fromkeys(digests, split)


def _has_no_targets(subject: Subject) -> str:
    kind = _kind_of(subject)
    return "" if kind.supervised else f"its tasks are {kind.name} tasks: a rollout of the support set gives no answer"


@check("dataset", skip_reason=_has_no_targets)
def apart(subject: Subject) -> None:
    """No example of an episode is in both its support set and its query set."""
    dataset = subject.build_dataset()
    for split in splits_of(subject, dataset):
        for index, (support, query) in enumerate(_episode_digests(subject, dataset, split, 50)):
            assert not support & query, (
                f"an example of {split} episode {index} is in both its support and its query set; sample them without"
                " replacement"
            )


def _episode_digests(
    subject: Subject, dataset: Dataset, split: str, count: int
) -> list[tuple[frozenset[bytes], frozenset[bytes]]]:
    """Return the digests of the support set and of the query set of each of the first episodes of a split.

    Raises `Skipped` if the examples have fewer different digests than one episode has examples. Then some episodes must
    repeat them, and equal inputs need not be the same example: the inputs of a bandit are constant, for instance.
    """
    digests, examples, kind = [], 0, task_kind(subject.cls.kind)
    # A few episodes at a time, because hundreds of episodes of large images may not fit into memory.
    for first in range(0, count, _TOGETHER):
        batch = dataset.sample(split, subject.episode_shape(), first, min(_TOGETHER, count - first), seed=0)
        for index in range(len(batch.support.x)):
            task = one_task(batch, index)
            digests.append((_digests(task.support, kind), _digests(task.query, kind)))
            examples = len(task.support.x) + len(task.query.x)
    different = len(set().union(*itertools.chain(*digests)))
    if different < examples:
        raise Skipped(
            f"{count} episodes of {split} have only {different} different examples, and each has {examples}; so an"
            " example cannot be recognised by its input"
        )
    return digests


def _digests(part: Examples, kind: TaskKind) -> frozenset[bytes]:
    """Return the digests of some examples: of the input, and of the target too unless that is a class."""
    x, y = (leaf.reshape(len(leaf), -1) for leaf in part)
    rows = x if kind.classes else torch.cat([x, y], -1)
    return frozenset(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows.contiguous().numpy())


@check("dataset", name="too-large")
def too_large(subject: Subject) -> None:
    """`spec` raises `DataError` for a task that is larger than the data."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    shapes = [shape._replace(ways=TOO_MANY)]
    if task_kind(subject.cls.kind).classes:
        shapes += [shape._replace(shots=TOO_MANY), shape._replace(queries=TOO_MANY)]
    for large in shapes:
        remedy = "raise DataError and name the largest possible shape"
        try:
            dataset.spec("train", large)
        except DataError:
            continue
        except Exception as error:
            raise AssertionError(
                f"for {_counts(large)} spec raises {type(error).__name__}: {error}; {remedy}"
            ) from error
        raise AssertionError(f"spec accepts {_counts(large)}; {remedy}")


@check("dataset", name="unknown-split")
def unknown_split(subject: Subject) -> None:
    """`spec` raises `DataError` or `ConfigError` for a split that does not exist."""
    dataset, shape = subject.build_dataset(), subject.episode_shape()
    remedy = "raise DataError or ConfigError and name the splits that exist (metaforge.data.check_split does)"
    try:
        dataset.spec("no-such-split", shape)
    except (ConfigError, DataError):
        return
    except Exception as error:
        raise AssertionError(f"for an unknown split spec raises {type(error).__name__}: {error}; {remedy}") from error
    raise AssertionError(f"spec accepts the unknown split 'no-such-split'; {remedy}")


@check("dataset")
def facts(subject: Subject) -> None:
    """`facts` returns strings and numbers by name, for every split."""
    dataset = subject.build_dataset()
    for split in splits_of(subject, dataset):
        values = dict(dataset.facts(split))
        wrong = [
            name for name, value in values.items() if type(name) is not str or type(value) not in (str, int, float)
        ]
        assert not wrong, (
            f"facts must map str to str, int or float, but for {split} these do not: {', '.join(map(str, wrong))}"
        )
