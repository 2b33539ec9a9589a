"""Draws the pictures of a run: the plots of its training and evaluation, and some of its test tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import task_kind
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.data.batches import episode_batches
from metaforge.engine.batch import prepare_tasks, score_tasks
from metaforge.errors import ConfigError, DataError
from metaforge.results.episode_picture import episode_grid
from metaforge.results.episode_scores import EvaluationCase
from metaforge.results.evaluation_cases import TrainedRun, evaluation_case, varied_bounds
from metaforge.results.grid_picture import Panel, on_grid, panel_grid
from metaforge.results.plots import Fit, regression_fits, score_histogram, steps_curve, training_curve
from metaforge.results.records import (
    PICTURES,
    caption,
    headline_score,
    path_inside,
    read_metrics,
    shape_name,
    valid_evaluations,
)
from metaforge.results.stream import draw_stream

# Regression tasks that are plotted, and the points of each curve.
_TASKS, _POINTS = 6, 200
# Tasks on a grid that are drawn, and the most sizes of the support set.
_GRIDS, _SIZES = 5, 4
# The largest task and the most adaptation steps of a record for which a task is computed again to be drawn.
_MAX_EXAMPLES, _MAX_STEPS = 100_000, 10_000


def draw(run: TrainedRun, *, split: str) -> list[Path]:
    """Draw a run's training and its evaluations on a split, write the pictures to its folder, return their paths."""
    if run.folder is None:
        return []
    drawn: list[Path] = []
    records = [record for record in valid_evaluations(run.folder)[0] if record["split"] == split]
    if any(row.get("loss") is not None for row in read_metrics(run.folder / "metrics.jsonl")):
        drawn.append(path_inside(run.folder, PICTURES, "training.png"))
        scale = task_kind(run.dataset.kind).scale
        training_curve(
            run.folder / "metrics.jsonl", drawn[-1], title=" · ".join([*_names(run), "training"]), scale=scale
        )
    drawn += draw_stream(run, " · ".join([*_names(run), "rounds"]))
    for record in records:
        if headline_score(record)["mean"] is not None:
            name = f"scores-{split}-{shape_name(record['ways'], record['shots'])}.png"
            drawn.append(path_inside(run.folder, PICTURES, name))
            score_histogram(record, drawn[-1])
    with_steps = [record for record in records if len(record["scores"]) > 1]
    if with_steps:
        drawn.append(path_inside(run.folder, PICTURES, f"steps-{split}.png"))
        steps_curve(with_steps, drawn[-1])
    with run.resolved.running_errors("sample", "for the pictures", owner=run.resolved.dataset, always=False):
        return drawn + (_draw_tasks(run, records, run.folder) if records else [])


def _names(run: TrainedRun) -> list[str]:
    return [choice.name for choice in (run.resolved.dataset, run.resolved.learner) if choice is not None]


def _draw_tasks(run: TrainedRun, records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw the first tasks of the first evaluation with the learner's predictions, if their inputs can be drawn."""
    record = records[0]
    varied = record.get("varied")
    shape = TaskShape(record["ways"], record["shots"], record["queries"])
    steps = headline_score(record)["steps"]
    split, seed = record["split"], record["seed"]
    if record["ways"] * (record["shots"] + record["queries"]) > _MAX_EXAMPLES or (steps or 0) > _MAX_STEPS:
        return []
    try:
        bounds = varied_bounds(run.resolved.run) if varied else shape
        case = evaluation_case(run, split, bounds, None if steps is None else [steps])
        (batch,) = episode_batches(run.dataset, split, case.spec, case.bounds, range(1), seed=seed)
    except (ConfigError, DataError):
        return []  # A record of somebody else may be of tasks that this learner or data set does not have.
    kind = case.spec.kind
    if kind.picture == "curves" and case.spec.x_shape == (1,) and case.spec.outputs == 1:
        out = path_inside(folder, PICTURES, f"fits-{split}.png")
        # The same tasks with many queries, which show the true curves.
        case = evaluation_case(run, split, shape._replace(queries=_POINTS), None if steps is None else [steps])
        tasks = run.dataset.sample(split, case.spec.shape, 0, _TASKS, seed=seed)
        regression_fits(_fits(run, case, tasks, record), out, kind, title=caption(record), steps=steps)
        return [out]
    grid = run.dataset.grid(split)
    if kind.picture == "curves" and len(grid) == 2 and case.spec.x_shape == (2,) and math.prod(grid) <= _MAX_EXAMPLES:
        return _draw_images(run, records, grid, folder)
    if kind.picture == "classes" and len(case.spec.x_shape) == 3:
        out = path_inside(folder, PICTURES, f"episode-{split}.png")
        case = replace(case, spec=batch.spec, learner=case.learner_for(batch.spec))
        predictions = _predict(run, case, batch.tasks, steps, record)[0]
        episode_grid(one_task(batch.tasks), out, kind, predictions, title=f"{caption(record)}, task 0")
        return [out]
    return []


def _draw_images(
    run: TrainedRun, records: Sequence[Mapping[str, Any]], grid: tuple[int, ...], folder: Path
) -> list[Path]:
    """Draw the first tasks on a grid, for every size of the support set that was evaluated like the first one."""
    first = records[0]
    split, steps = first["split"], headline_score(first)["steps"]
    same = [record for record in records if (record["ways"], record["seed"]) == (first["ways"], first["seed"])]
    sizes = sorted({record["shots"] for record in same if record["shots"] < math.prod(grid)})[:_SIZES]
    if not sizes:
        return []
    columns = [_on_grid(run, TaskShape(first["ways"], shots, 1), grid, first, steps) for shots in sizes]
    rows = [
        [columns[0][number][0], *(panel for column in columns for panel in column[number][1:])]
        for number in range(_GRIDS)
    ]
    out = path_inside(folder, PICTURES, f"images-{split}.png")
    panel_grid(rows, out, title=" · ".join([*_names(run), f"{split} split"]))
    return [out]


def _on_grid(
    run: TrainedRun, shape: TaskShape, grid: tuple[int, ...], record: Mapping[str, Any], steps: int | None
) -> list[list[Panel]]:
    """Return the panels of some tasks, all of whose places are predicted: the truth, the support set, the prediction.

    The prediction is the mean, and the deviation if the learner predicts one.
    """
    split, shots = record["split"], shape.shots
    case = evaluation_case(
        run, split, shape._replace(queries=math.prod(grid) - shots), None if steps is None else [steps]
    )
    sampled = run.dataset.sample(split, case.spec.shape, 0, _GRIDS, seed=record["seed"])
    x, y = (torch.cat(pair, dim=1) for pair in zip(sampled.support, sampled.query, strict=True))
    tasks = Task(sampled.support, Examples(x, y))
    means = _predict(run, case, tasks, case.steps[-1], record)
    deviations = _deviations(run, case, tasks, case.steps[-1])
    return [
        [
            Panel("image", on_grid(grid, x[i], y[i])),
            Panel(f"{shots} given", on_grid(grid, x[i, :shots], y[i, :shots])),
            Panel("mean", on_grid(grid, x[i], means[i])),
            *([] if deviations is None else [Panel("deviation", on_grid(grid, x[i], deviations[i]), True)]),
        ]
        for i in range(_GRIDS)
    ]


def _fits(run: TrainedRun, case: EvaluationCase, tasks: Task, record: Mapping[str, Any]) -> list[Fit]:
    """Return the plots of some tasks, with predictions before and after adaptation."""
    after = _predict(run, case, tasks, case.steps[0], record)
    before = _predict(run, case, tasks, 0, record) if case.learner.tags.adapts else None
    return [
        Fit(
            x=tasks.query.x[index],
            truth=tasks.query.y[index],
            support_x=tasks.support.x[index],
            support_y=tasks.support.y[index],
            after=after[index],
            before=None if before is None else before[index],
        )
        for index in range(len(tasks.query.x))
    ]


def _predict(
    run: TrainedRun, case: EvaluationCase, tasks: Task, steps: int | None, record: Mapping[str, Any]
) -> Tensor:
    """Return predictions `[tasks, n, outputs]` for the queries of the first tasks of an evaluation, after `steps`."""
    batch, spec = prepare_tasks(tasks, run.device, run.dtype), case.spec
    keys = torch.stack([make_key(record["seed"], record["split"], i) for i in range(len(tasks.query.x))])
    with torch.no_grad(), run.resolved.running_errors("evaluation", "for the pictures"):
        scored = score_tasks(
            case.learner, run.values, batch, keys.to(run.device), kind=spec.kind, steps=steps, outputs=spec.outputs
        )
    return scored.predictions.cpu()


def _deviations(run: TrainedRun, case: EvaluationCase, tasks: Task, steps: int | None) -> list[Tensor] | None:
    """Return the deviations `[n, outputs]` that the learner predicts for the queries of each task; None if it does not.

    Only kinds of tasks that need no key have them.
    """
    batch, found = prepare_tasks(tasks, run.device, run.dtype), list[Tensor]()
    with torch.no_grad(), run.resolved.running_errors("evaluation", "for the pictures"):
        for index in range(len(tasks.query.x)):
            task, values = one_task(batch, index), dict(run.values)
            fast = case.learner.adapt(values, task.support, steps=steps)
            deviation = case.learner.deviation(values, fast, task.query.x)
            if deviation is None:
                return None
            found.append(deviation.cpu())
    return found
