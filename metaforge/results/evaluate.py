"""Evaluation: what a learner scores on tasks that it has never seen, beside chance and beside a neighbour's answer.

Episode i of a split under the evaluation's seed is the same task for every learner, so that two learners' scores can be
compared task by task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.losses import score
from metaforge.authoring.protocols import Dataset, Kind, Learner, Params, Task, TaskShape, TaskSpec
from metaforge.config.resolved import Resolved
from metaforge.engine import plans
from metaforge.engine.batch import prepare, score_tasks
from metaforge.errors import ConfigError
from metaforge.results.records import Estimate, Record, without_tasks, write_evaluation
from metaforge.results.statistics import mean_and_ci, strict_mean_and_ci

ENOUGH = 600
METRICS: dict[Kind, str] = {"classification": "accuracy", "regression": "mse"}
# What the evaluations of one call have in common.
_SHARED = (
    *("learner", "dataset", "step", "damaged", "split", "seed", "tasks", "ways"),
    *("metric", "norm", "transductive", "note", "warn"),
)


class Subject(Protocol):
    """What evaluation needs of a trained run; nothing is written where `folder` is None."""

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


@dataclass(frozen=True)
class Plan:
    """One evaluation to carry out: the shape of its tasks, the learner for it, and the numbers of adaptation steps."""

    spec: TaskSpec
    learner: Learner
    steps: tuple[int | None, ...]


@dataclass
class _Columns:
    """What was measured, one entry per task in each list."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    chance: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)


def evaluate_run(
    run: Subject,
    *,
    shots: Sequence[int] | None,
    steps: Sequence[int] | None,
    tasks: int,
    split: str,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    ways: int | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Record:
    """Return the scores of a run on episodes `0 … tasks - 1` of a split, for each number of shots and adaptation steps.

    Everything, with the lists by task, is written into the run's folder too. `shots`, `steps` and `ways` are the run's
    own where None; `progress` is told (evaluations done, evaluations in all); `saved` says after which step the values
    were saved (`steps`) and what is wrong with later checkpoints (`damaged`). Raises `ConfigError` for what the
    learner cannot do, `DataError` for tasks that the data cannot make.
    """
    _check_numbers(tasks, shots, steps)
    task = run.resolved.run.task
    shapes = [
        TaskShape(task.ways if ways is None else ways, k, task.queries) for k in dict.fromkeys(shots or [task.shots])
    ]
    # All are planned before the first is begun: what cannot be done is said at once.
    plans = [plan_of(run, split, shape, steps) for shape in shapes]
    total, done = tasks * sum(len(plan.steps) for plan in plans), 0
    results = []
    for plan in plans:

        def moved(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        record = _evaluated(run, plan, tasks, split, seed, moved)
        record |= {"step": (saved or {}).get("steps"), "damaged": [*(saved or {}).get("damaged", ())]}
        if record["damaged"]:
            said = f"{len(record['damaged'])} later checkpoints cannot be used: this is step {record['step']}."
            record["warn"] = f"{record['warn']} {said}".strip()
        done += tasks * len(plan.steps)
        if run.folder is not None:
            write_evaluation(run.folder, record)
        results.append(without_tasks(record))
    return {**{name: results[0][name] for name in _SHARED}, "results": results}


def plan_of(run: Subject, split: str, shape: TaskShape, steps: Sequence[int] | None) -> Plan:
    """Return how to evaluate a run on tasks of one shape; `ConfigError` or `DataError` if that is impossible."""
    spec = run.dataset.spec(split, shape)
    learner = run.learner(spec)
    settings = run.resolved.run
    trained = settings.train.ways or settings.task.ways
    name = _name(run.resolved.learner, learner)
    if learner.tags.fixed_ways and spec.kind == "classification" and shape.ways != trained:
        raise ConfigError(
            f"The learner {name!r} was trained on {trained} ways and has as many outputs; it cannot do {shape.ways}.",
            where="evaluate, ways",
            remedy=f"evaluate it on {trained} ways, or train it with task.ways = {shape.ways}",
        )
    if not learner.tags.adapts:
        if steps:
            raise ConfigError(
                f"The learner {name!r} does not adapt in steps, so it cannot be evaluated after {list(steps)} of them.",
                where="evaluate.steps",
                remedy="leave the steps out",
            )
        return Plan(spec, learner, (None,))
    return Plan(spec, learner, tuple(sorted({*steps} if steps else {0, learner.steps})))


def _check_numbers(tasks: int, shots: Sequence[int] | None, steps: Sequence[int] | None) -> None:
    """Raise `ConfigError` for numbers that make no evaluation."""
    if tasks < 1:
        raise ConfigError(f"An evaluation on {tasks} tasks says nothing.", where="evaluate.tasks", remedy="use 1000")
    for name, numbers, least in (("shots", shots or (), 1), ("steps", steps or (), 0)):
        if min(numbers, default=least) < least:
            raise ConfigError(
                f"evaluate.{name} has {min(numbers)}, but should be {least} or more.",
                where=f"evaluate.{name}",
                remedy=f"leave it out to use the run's own {name}",
            )


def nearest_neighbour(kind: Kind, task: Task) -> Tensor:
    """Return the score of answering each query with its nearest support example's target, for one task.

    The distance is squared Euclidean on raw inputs; of equally near examples the first is taken.
    """
    support, query = (part.x.flatten(1).double() for part in task)
    found = task.support.y[torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)]
    if kind == "classification":
        return (found == task.query.y).double().mean()
    return score(kind, found.double(), task.query.y.double())


def chance_level(kind: Kind, task: Task, ways: int) -> Tensor:
    """Return the score of knowing nothing of the inputs: 1 / ways, or the error of the support set's mean."""
    if kind == "classification":
        return torch.tensor(1 / ways, dtype=torch.float64)
    return score(kind, task.support.y.double().mean(0), task.query.y.double())


def _evaluated(run: Subject, plan: Plan, tasks: int, split: str, seed: int, progress: Callable[[int], None]) -> Record:
    columns = _Columns()
    asked = run.resolved.run.engine
    chosen = plans.choose_plan(plan.learner, asked.plan)
    chunk = plans.choose_chunk(plan.spec, run.device, asked.chunk, training=False)
    with torch.no_grad():
        for first in range(0, tasks, chunk):
            count = min(chunk, tasks - first)
            raw = run.dataset.sample(split, plan.spec.shape, first, count, seed=seed)
            _references(plan.spec, raw, columns)
            keys = torch.stack([make_key(seed, split, index) for index in range(first, first + count)])
            _scored(run, plan, raw, keys.to(run.device), chosen, columns)
            progress((first + count) * len(plan.steps))
    return _record(run, plan, tasks, split, seed, columns)


def _references(spec: TaskSpec, raw: Task, columns: _Columns) -> None:
    """Add chance and floor of a batch; from the data as sampled, so that no precision or device changes them."""
    for index in range(len(raw.support.x)):
        task = one_task(raw, index)
        columns.floor.append(float(nearest_neighbour(spec.kind, task)))
        columns.chance.append(float(chance_level(spec.kind, task, spec.shape.ways)))


def _scored(run: Subject, plan: Plan, raw: Task, keys: Tensor, chosen: plans.Plan, columns: _Columns) -> None:
    """Add each step count's scores of a batch; the learner's own figures are taken once, with the last of them."""
    batch = prepare(raw, run.device, run.dtype)
    for steps in plan.steps:
        last = steps == plan.steps[-1]
        found = score_tasks(plan.learner, run.values, batch, keys, steps=steps, plan=chosen, measure=last)
        # Scored again in float64 from the predictions: a mean of 75 zeros and ones is not exact in bfloat16.
        predictions = found.predictions.cpu().double()
        scores = [_score(plan.spec.kind, predictions[i], raw.query.y[i].cpu()) for i in range(len(predictions))]
        columns.scores.setdefault(_label(steps), []).extend(scores)
        for name, values in found.measures.items():
            columns.measures.setdefault(name, []).extend(values.cpu().double().tolist())


def _score(kind: Kind, prediction: Tensor, y: Tensor) -> float:
    """Return a task's score; NaN where a prediction is not finite, which an accuracy would hide."""
    if not bool(prediction.isfinite().all()):
        return math.nan
    return float(score(kind, prediction, y.double() if y.is_floating_point() else y))


def _record(run: Subject, plan: Plan, tasks: int, split: str, seed: int, columns: _Columns) -> Record:
    shape, learner = plan.spec.shape, plan.learner
    scores = [{"steps": steps, **strict_mean_and_ci(columns.scores[_label(steps)])} for steps in plan.steps]
    return {
        "format": 1,
        "learner": _name(run.resolved.learner, learner),
        "dataset": _name(run.resolved.dataset, run.dataset),
        "split": split,
        "seed": seed,
        "tasks": tasks,
        **shape._asdict(),
        "kind": plan.spec.kind,
        "metric": METRICS[plan.spec.kind],
        "norm": learner.norm,
        "transductive": learner.transductive,
        "note": run.dataset.note,
        "warn": _warning(tasks, scores),
        "own_steps": learner.steps if learner.tags.adapts else None,
        "chance": mean_and_ci(columns.chance),
        "floor": mean_and_ci(columns.floor),
        "scores": scores,
        "measures": {name: strict_mean_and_ci(values) for name, values in columns.measures.items()},
        "per_task": {
            "chance": columns.chance,
            "floor": columns.floor,
            "scores": {label: _jsonable(values) for label, values in columns.scores.items()},
            "measures": {name: _jsonable(values) for name, values in columns.measures.items()},
        },
    }


def _warning(tasks: int, scores: Sequence[Estimate]) -> str:
    """Return what a reader must know before believing the figures, in sentences; empty if nothing."""
    said = []
    if tasks < ENOUGH:
        said.append(f"Only {tasks} tasks were evaluated; papers use at least {ENOUGH}.")
    for one in scores:
        if one["tasks"] < tasks:
            after = "" if one["steps"] is None else f" after {one['steps']} adaptation steps"
            said.append(f"On {tasks - one['tasks']} of {tasks} tasks the predictions{after} are not finite.")
    return " ".join(said)


def _label(steps: int | None) -> str:
    return "after" if steps is None else str(steps)


def _jsonable(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _name(choice: Any, plugin: object) -> str:
    """Return the name that the configuration gives a plugin, or its class's where it was handed over in Python."""
    return str(choice.name) if choice is not None else type(plugin).__name__
