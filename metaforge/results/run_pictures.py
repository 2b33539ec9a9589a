"""The pictures of a run: which are drawn, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import Task, TaskShape
from metaforge.engine.batch import prepare, score_tasks
from metaforge.results.evaluate import Plan, Subject, plan_of
from metaforge.results.pictures import Fit, episode_grid, regression_fits, score_histogram, steps_curve, training_curve
from metaforge.results.records import PICTURES, caption, headline, read_evaluations, read_metrics

_TASKS, _POINTS = 6, 200


def draw(run: Subject, *, split: str) -> list[Path]:
    """Draw a run's training and its evaluations on a split into its folder; return the pictures' paths."""
    if run.folder is None:
        return []
    folder = run.folder / PICTURES
    drawn = []
    records = [record for record in read_evaluations(run.folder) if record["split"] == split]
    if any(row.get("loss") is not None for row in read_metrics(run.folder / "metrics.jsonl")):
        drawn.append(folder / "training.png")
        names = [choice.name for choice in (run.resolved.dataset, run.resolved.learner) if choice is not None]
        metric = "mse" if run.dataset.kind == "regression" else "accuracy"
        training_curve(run.folder / "metrics.jsonl", drawn[-1], title=" · ".join([*names, "training"]), metric=metric)
    for record in records:
        if headline(record)["mean"] is not None:
            drawn.append(folder / f"scores-{split}-{record['ways']}w{record['shots']}s.png")
            score_histogram(record, drawn[-1])
    stepped = [record for record in records if len(record["scores"]) > 1]
    if stepped:
        drawn.append(folder / f"steps-{split}.png")
        steps_curve(stepped, drawn[-1])
    return drawn + (_examples(run, records[0], folder) if records else [])


def _examples(run: Subject, record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the first tasks of an evaluation with the learner's answers; nothing where inputs cannot be drawn."""
    shape = TaskShape(record["ways"], record["shots"], record["queries"])
    steps = headline(record)["steps"]
    split, seed = record["split"], record["seed"]
    plan = plan_of(run, split, shape, None if steps is None else [steps])
    if plan.spec.kind == "regression" and plan.spec.x_shape == (1,) and plan.spec.outputs == 1:
        out = folder / f"fits-{split}.png"
        # The same tasks with many queries: sorted, they are the true curves.
        plan = plan_of(run, split, shape._replace(queries=_POINTS), None if steps is None else [steps])
        tasks = run.dataset.sample(split, plan.spec.shape, 0, _TASKS, seed=seed)
        regression_fits(_fits(run, plan, tasks), out, title=caption(record), steps=steps)
        return [out]
    if plan.spec.kind == "classification" and len(plan.spec.x_shape) == 3:
        out = folder / f"episode-{split}.png"
        tasks = run.dataset.sample(split, shape, 0, 1, seed=seed)
        episode_grid(one_task(tasks), out, _predicted(run, plan, tasks, steps)[0], title=f"{caption(record)}, task 0")
        return [out]
    return []


def _fits(run: Subject, plan: Plan, tasks: Task) -> list[Fit]:
    after = _predicted(run, plan, tasks, plan.steps[0])
    before = _predicted(run, plan, tasks, 0) if plan.learner.tags.adapts else None
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


def _predicted(run: Subject, plan: Plan, tasks: Task, steps: int | None) -> Tensor:
    """Return predictions `[tasks, n, outputs]`."""
    batch = prepare(tasks, run.device, run.dtype)
    with torch.no_grad():
        return score_tasks(plan.learner, run.values, batch, steps=steps).predictions.cpu()
