"""What an evaluation computes: the tasks, the learner that is built for them, and the numbers of adaptation steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from metaforge.authoring.protocols import Dataset, Learner, Params, Tags, TaskShape, TaskSpec
from metaforge.config.resolved import Resolved
from metaforge.config.settings import MAX_SIZE, RunConfig, Sampler
from metaforge.data.checks import expected_spec
from metaforge.data.varied import EpisodeBounds, varied_spec
from metaforge.errors import ConfigError, shown
from metaforge.results.episode_scores import EvaluationCase


class TrainedRun(Protocol):
    """What evaluation needs of a trained run; if `folder` is None, nothing is written."""

    @property
    def resolved(self) -> Resolved: ...
    @property
    def dataset(self) -> Dataset: ...
    @property
    def values(self) -> Params: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def folder(self) -> Path | None: ...

    def learner(self, spec: TaskSpec) -> Learner:
        """Return the run's learner, built for tasks of this spec."""
        ...


def varied_bounds(settings: RunConfig) -> EpisodeBounds:
    """Return the bounds of a run's varied tasks."""
    return EpisodeBounds(**settings.varied.model_dump())


def require_numbers(
    tasks: int,
    shots: Sequence[int] | None,
    steps: Sequence[int] | None,
    *,
    ways: int | None,
    queries: int | None,
    seed: int,
) -> None:
    """Raise `ConfigError` if a number is outside its bounds, which are those of the settings and of the records."""
    if tasks < 1:
        raise ConfigError(f"An evaluation on {tasks} tasks has no result.", where="evaluate.tasks", remedy="use 1000")
    bounds = {
        "shots": (shots or (), 1, MAX_SIZE),
        "steps": (steps or (), 0, 2**63 - 1),
        "ways": (() if ways is None else (ways,), 1, MAX_SIZE),
        "queries": (() if queries is None else (queries,), 1, MAX_SIZE),
        "tasks": ((tasks,), 1, 2**63 - 1),
        "seed": ((seed,), 0, 2**63 - 1),
    }
    for name, (numbers, least, most) in bounds.items():
        for number in numbers:
            if not least <= number <= most:
                bound = f"{least} or more" if number < least else f"{most} or less"
                raise ConfigError(
                    f"evaluate.{name} has {shown(number)}, but should be {bound}.",
                    where=f"evaluate.{name}",
                    remedy=f"leave it out to use the run's own {name}",
                )


def evaluation_shapes(
    run: TrainedRun,
    ways: int | None,
    shots: Sequence[int] | None,
    sampler: Sampler | None = None,
    queries: int | None = None,
) -> list[TaskShape | EpisodeBounds]:
    """Return the shapes of tasks to evaluate on: one for each number of shots, or the bounds of varied tasks.

    Numbers of ways, shots or queries that are asked for are those of tasks of a fixed shape. Raises `ConfigError` for a
    sampler that does not exist.
    """
    settings = run.resolved.run
    if sampler not in (None, "fixed", "varied"):
        raise ConfigError(
            f"The sampler is {shown(sampler)}.", where="evaluate, sampler", remedy="use one of fixed and varied"
        )
    if (sampler or settings.task.sampler) == "varied" and ways is None and queries is None and not shots:
        return [varied_bounds(settings)]
    task = settings.task
    ways = task.ways if ways is None else ways
    queries = task.queries if queries is None else queries
    return [TaskShape(ways, number, queries) for number in dict.fromkeys(shots or [task.shots])]


def evaluation_case(
    run: TrainedRun, split: str, shape: TaskShape | EpisodeBounds, steps: Sequence[int] | None
) -> EvaluationCase:
    """Return how to evaluate a run on tasks of one shape, or on varied tasks within bounds.

    Raises:
        ConfigError: The learner cannot be evaluated like this.
        DataError: The data set cannot make such tasks.
    """
    settings = run.resolved.run
    bounds = shape if isinstance(shape, EpisodeBounds) else None
    with run.resolved.running_errors("spec", f"of the {split!r} split", owner=run.resolved.dataset):
        if isinstance(shape, TaskShape):
            spec = expected_spec(run.dataset, run.dataset.spec(split, shape), shape)
        else:
            require_class_sizes(run.dataset, split, plugin_name(run.resolved.dataset, run.dataset))
            spec = varied_spec(run.dataset, split, shape)
    learner = run.learner(spec)
    name = plugin_name(run.resolved.learner, learner)
    if bounds is not None:
        require_varied(name, learner.tags, settings.task.ways, bounds, "evaluate, sampler")
    elif learner.tags.fixed_ways and spec.kind.classes and spec.shape.ways != settings.task.ways:
        raise ConfigError(
            f"The learner {name!r} was trained on {settings.task.ways} ways; it cannot be evaluated on"
            f" {spec.shape.ways} ways.",
            where="evaluate, ways",
            remedy=f"evaluate it on {settings.task.ways} ways, or train it with task.ways = {spec.shape.ways}",
        )
    case = EvaluationCase(spec, learner, bounds=bounds, build=cache(run.learner))
    if learner.tags.adapts:
        return replace(case, steps=tuple(sorted({*steps} if steps else {0, learner.steps})))
    if steps:
        raise ConfigError(
            f"The learner {name!r} does not adapt in steps, so its score after {list(steps)} steps does not exist.",
            where="evaluate.steps",
            remedy="leave the steps out",
        )
    return case


def require_varied(name: str, tags: Tags, ways: int, bounds: EpisodeBounds, where: str) -> None:
    """Raise `ConfigError` unless a learner can take varied tasks.

    Args:
        name: The name of the learner.
        tags: Its tags.
        ways: The number of classes that it is built for, if it has one output per class.
        bounds: The bounds of the tasks.
        where: The setting that asks for varied tasks.
    """
    if not tags.varied_shots:
        raise ConfigError(
            f"The learner {name!r} does not take tasks whose classes have different numbers of support examples (its"
            " tag varied_shots is False).",
            where=where,
            remedy="set task.sampler and train.sampler to fixed, or choose another learner",
        )
    if tags.fixed_ways and {bounds.min_ways, bounds.max_ways} != {ways}:
        raise ConfigError(
            f"The learner {name!r} has one output per class, so it cannot take tasks of {bounds.min_ways} to"
            f" {bounds.max_ways} ways; it is built for {ways}.",
            where=where,
            remedy=f"set varied.min_ways and varied.max_ways to {ways} (task.ways), or choose another learner",
        )


def require_class_sizes(dataset: Dataset, split: str, name: str) -> None:
    """Raise `ConfigError` if a data set cannot draw varied tasks, because it does not give the sizes of its classes."""
    if not len(dataset.class_sizes(split)):
        raise ConfigError(
            f"The data set {name!r} gives no sizes of the classes of {split!r}, so its tasks cannot vary.",
            where="task.sampler",
            remedy="set task.sampler and train.sampler to fixed, or choose another data set",
        )


def plugin_name(choice: Any, plugin: object) -> str:
    """Return the plugin's name in the configuration, or the name of its class if it is not named there."""
    return str(choice.name) if choice is not None else type(plugin).__name__
