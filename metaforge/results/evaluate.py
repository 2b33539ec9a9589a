"""Evaluation of a trained learner: its scores on test tasks, and those of two baselines on the same tasks.

Episode i of a split under the evaluation's seed is the same task for every learner, so the scores of two learners can
be compared task by task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import Dataset, TaskShape
from metaforge.config.settings import Sampler
from metaforge.data.batches import TaskBatch
from metaforge.engine import plans
from metaforge.errors import ConfigError, ContractError, shown
from metaforge.results.episode_scores import EvaluationCase, episode_chunks, score_episodes, together
from metaforge.results.evaluation_cases import (
    TrainedRun,
    evaluation_case,
    evaluation_shapes,
    plugin_name,
    require_numbers,
)
from metaforge.results.record_schema import step_label
from metaforge.results.records import Record, is_file_name, scale_fields, without_per_task, write_evaluation
from metaforge.results.statistics import StepScore, mean_and_ci, strict_mean_and_ci

# With fewer test tasks a result carries a warning.
ENOUGH_TASKS = 600
# Fields of a record that are equal for all task shapes of one evaluation.
_SHARED = (
    *("learner", "dataset", "step", "damaged", "split", "seed", "tasks", "ways"),
    *("metric", "norm", "transductive", "note", "warn"),
)


@dataclass
class _TaskValues:
    """Everything that was measured; each list has one entry per task. `sizes` is empty for tasks of one shape.

    `finite` says for each score whether the predictions for the task are finite.
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    finite: dict[str, list[bool]] = field(default_factory=dict)
    chance: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)


def evaluate_run(
    run: TrainedRun,
    *,
    shots: Sequence[int] | None,
    steps: Sequence[int] | None,
    tasks: int,
    split: str,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    ways: int | None = None,
    queries: int | None = None,
    sampler: Sampler | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Record:
    """Return the scores of a run on episodes `0 … tasks - 1` of a split.

    If the run has a folder, a record with the values of every task is written there for each number of shots.

    Args:
        run: The trained run.
        shots: Numbers of support examples per class, each evaluated separately; the run's own number if None or empty.
        steps: Numbers of adaptation steps, each evaluated separately; 0 and the learner's own if None or empty.
        tasks: Number of tasks.
        split: Split of the data set.
        seed: Seed of the episodes.
        progress: Called with (tasks evaluated so far, tasks in all); a task counts once per number of steps.
        ways: Number of classes in a task; the run's own number if None.
        queries: Number of query examples per class; the run's own number if None.
        sampler: Whether tasks have a fixed shape or vary, if none of `ways`, `shots` and `queries` asks for a shape; as
            the run's own tasks if None.
        saved: Facts about the checkpoint: `steps` is its outer step, `damaged` has a sentence for each later checkpoint
            that cannot be used.

    Returns:
        The record without the values of every task; its `results` has one record for each number of shots.

    Raises:
        ConfigError: The learner cannot be evaluated like this.
        DataError: The data set cannot make such tasks.
    """
    require_numbers(tasks, shots, steps, ways=ways, queries=queries, seed=seed)
    if run.folder is not None and not is_file_name(split):
        raise ConfigError(
            f"The split is {shown(split)}, which cannot be part of a file name.",
            where="evaluate.split",
            remedy="use a name of letters, digits, dots, hyphens and underscores",
        )
    # All cases are checked before the first is computed, so that an impossible one is reported at once.
    shapes = evaluation_shapes(run, ways, shots, sampler, queries)
    cases = [evaluation_case(run, split, shape, steps) for shape in shapes]
    advance = _counter(progress, tasks * sum(len(case.steps) for case in cases))
    results = []
    for case in cases:
        record = _evaluate_case(run, case, tasks, split, seed, advance)
        _add_checkpoint(record, saved or {})
        if run.folder is not None:
            write_evaluation(run.folder, record)
        results.append(without_per_task(record))
    return {**{name: results[0][name] for name in _SHARED}, "results": results}


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    """Return a function that adds to a count and calls `progress` with (count, total)."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance


def _add_checkpoint(record: Record, saved: Mapping[str, Any]) -> None:
    """Add to a record the step of the checkpoint, and a warning if later checkpoints cannot be used."""
    damaged = [*saved.get("damaged", ())]
    record |= {"step": saved.get("steps"), "damaged": damaged}
    if damaged:
        later = f"{len(damaged)} later checkpoint{'s' if len(damaged) > 1 else ''}"
        warning = f"{later} cannot be used: the scores are those of outer step {record['step']}."
        record["warn"] = f"{record['warn']} {warning}".strip()


def _evaluate_case(
    run: TrainedRun, case: EvaluationCase, tasks: int, split: str, seed: int, advance: Callable[[int], None]
) -> Record:
    """Return the record of one task shape; `advance` is called with the number of tasks of each chunk."""
    measured = _TaskValues()
    asked = run.resolved.run.engine
    scored = partial(
        score_episodes,
        case,
        run.values,
        run.dataset,
        split=split,
        seed=seed,
        device=run.device,
        dtype=run.dtype,
        chunk=asked.chunk,
        rescore=True,
        measure=True,
    )
    plan = plans.choose_plan(case.learner, asked.plan)
    for episodes in episode_chunks(tasks, together(case, run.device, asked.chunk)):
        with run.resolved.running_errors("evaluation", _where(episodes, split)):
            try:
                result = scored(episodes, plan=plan)
            except RuntimeError:
                if asked.plan != "auto" or plan == "loop":
                    raise
                # Torch cannot run every network under `vmap`; both plans give the same scores.
                plan = "loop"
                result = scored(episodes, plan=plan)
            for name, values in result.measures.items():
                measured.measures.setdefault(name, []).extend(values.cpu().double().tolist())
        # The baselines are functions of the kind of the tasks, which the data set may bring.
        with run.resolved.running_errors("baselines", _where(episodes, split), owner=run.resolved.dataset):
            _add_baselines(result.batches, measured, varied=case.bounds is not None)
            if case.bounds is None:
                _add_measures(run.dataset, split, case.spec.shape, episodes, seed, measured)
        for steps, scores, finite in zip(case.steps, result.scores, result.finite, strict=True):
            measured.scores.setdefault(step_label(steps), []).extend(scores.tolist())
            measured.finite.setdefault(step_label(steps), []).extend(finite.tolist())
        advance(len(episodes) * len(case.steps))
    return _record(run, case, tasks, split, seed, measured)


def _where(episodes: range, split: str) -> str:
    """Return which episodes are computed, for an error message."""
    return f"on episodes {episodes[0]} to {episodes[-1]} of the {split!r} split"


def _add_baselines(batches: Sequence[TaskBatch], measured: _TaskValues, *, varied: bool) -> None:
    """Add the baselines of some tasks that their kind has, and of varied tasks the sizes.

    They are computed from the data as sampled: precision and device do not matter.
    """
    places = [(episode, batch, i) for batch in batches for i, episode in enumerate(batch.episodes)]
    for _, batch, index in sorted(places, key=itemgetter(0)):
        spec, task = batch.spec, one_task(batch.tasks, index)
        for baseline, values in ((spec.kind.floor, measured.floor), (spec.kind.chance, measured.chance)):
            if baseline is not None:
                values.append(float(baseline(task, spec)))
        if varied:
            ways, support, queries = spec.shape.ways, len(task.support.x), len(task.query.x)
            for name, size in (("ways", ways), ("support", support), ("queries", queries // ways)):
                measured.sizes.setdefault(name, []).append(size)


def _add_measures(
    dataset: Dataset, split: str, shape: TaskShape, episodes: range, seed: int, measured: _TaskValues
) -> None:
    """Add the metrics of the data set for some tasks; raise `ContractError` if they do not suit the learner's own."""
    for name, values in dataset.measure(split, shape, episodes[0], len(episodes), seed=seed).items():
        column = measured.measures.setdefault(name, [])
        column.extend(values)
        if len(column) != len(next(iter(measured.scores.values()), [])) + len(episodes):
            raise ContractError(
                f"measure of the data set returns {len(values)} values of {name!r} for {len(episodes)} episodes, or the"
                " learner has a metric of this name",
                owner=dataset,
            )


def _record(run: TrainedRun, case: EvaluationCase, tasks: int, split: str, seed: int, measured: _TaskValues) -> Record:
    kind, learner = case.spec.kind, case.learner
    shape = case.spec.shape._asdict() if case.bounds is None else dict.fromkeys(case.spec.shape._fields, 0)
    ranges = {name: [min(sizes), max(sizes)] for name, sizes in measured.sizes.items()}
    scores: list[StepScore] = [
        {"steps": steps, **strict_mean_and_ci(measured.scores[step_label(steps)])} for steps in case.steps
    ]
    return {
        "format": 1,
        "learner": plugin_name(run.resolved.learner, learner),
        "dataset": plugin_name(run.resolved.dataset, run.dataset),
        "split": split,
        "seed": seed,
        "tasks": tasks,
        **shape,
        **({"varied": ranges} if ranges else {}),
        "kind": kind.name,
        **scale_fields(kind),
        "norm": learner.norm,
        "transductive": learner.transductive,
        "note": run.dataset.note,
        "warn": _warning(tasks, scores, {label: sum(finite) for label, finite in measured.finite.items()}, kind.name),
        "own_steps": learner.steps if learner.tags.adapts else None,
        "chance": None if kind.chance is None else mean_and_ci(measured.chance),
        "floor": None if kind.floor is None else mean_and_ci(measured.floor),
        "scores": scores,
        "measures": {name: strict_mean_and_ci(values) for name, values in measured.measures.items()},
        "per_task": {
            "chance": _jsonable(measured.chance),
            "floor": _jsonable(measured.floor),
            "scores": {label: _jsonable(values) for label, values in measured.scores.items()},
            "measures": {name: _jsonable(values) for name, values in measured.measures.items()},
            **measured.sizes,
        },
    }


def _warning(tasks: int, scores: Sequence[StepScore], predicted: Mapping[str, int], kind: str) -> str:
    """Return sentences on what limits the result; empty if nothing does.

    `predicted` has, by the label of the steps, the number of tasks with finite predictions.
    """
    sentences = []
    if tasks < ENOUGH_TASKS:
        sentences.append(f"Only {tasks} tasks were evaluated; papers use at least {ENOUGH_TASKS}.")
    for one in scores:
        after = "" if one["steps"] is None else f" after {one['steps']} adaptation steps"
        finite = predicted[step_label(one["steps"])]
        if finite < tasks:
            sentences.append(f"On {tasks - finite} of {tasks} tasks the predictions{after} are not finite.")
        if one["tasks"] < finite:
            sentences.append(
                f"On {finite - one['tasks']} of {tasks} tasks the score of the kind {kind!r}{after} is not finite,"
                " although the predictions are."
            )
    return " ".join(sentences)


def _jsonable(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
