"""The rounds of a stream of tasks: the new task of each is scored before the learner learns from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import TaskKind, task_loss
from metaforge.authoring.protocols import Examples, Params
from metaforge.config.settings import RunConfig
from metaforge.data.batches import episode_batches
from metaforge.engine.batch import prepare_tasks, score_tasks
from metaforge.errors import ConfigError

if TYPE_CHECKING:
    from metaforge.runs.worker import Worker


def require_fixed_shape(settings: RunConfig) -> None:
    """Raise `ConfigError` if the tasks of a stream would have several shapes."""
    train = settings.train
    several = [name for name in ("ways", "shots", "queries") if isinstance(getattr(train, name), list)]
    if (train.sampler or settings.task.sampler) == "varied":
        several.append("sampler")
    if train.order == "stream" and several:
        raise ConfigError(
            "The tasks of a stream have one shape, because each is compared with the others.",
            where=f"train.{several[0]}",
            remedy="give one number of ways, shots and queries and the sampler fixed, or set train.order to fresh",
        )


def round_metrics(worker: Worker, values: Params, step: int) -> dict[str, float]:
    """Return how well the learner does on the task that arrives with an outer step.

    Args:
        worker: The computation of the run.
        values: The learner's values before the step.
        step: The number of the outer step, from 1.

    Returns:
        The number of the `round`, from 0, and the `round_loss` and `round_score` of its task on the queries after
        adaptation to the whole support set; with `train.proficiency`, the `round_examples`: the smallest number of
        support examples per class with which the task reaches that score, infinite if it does not. Nothing if no task
        arrives with the step.
    """
    train, spec = worker.settings.train, worker.spec
    number, place = divmod(step - 1, train.round)
    if train.order != "stream" or place:
        return {}
    when = f"in round {number}"
    with worker.resolved.running_errors("sample", when, owner=worker.resolved.dataset):
        batches = episode_batches(
            worker.parts.dataset, "train", spec, None, range(number, number + 1), seed=worker.settings.seed
        )
    tasks = prepare_tasks(batches[0].tasks, worker.device, worker.dtype)
    key = make_key(worker.settings.seed, "round", number).to(worker.device).unsqueeze(0)
    with worker.resolved.running_errors("evaluation", when):
        scores = {}
        for count in range(1 if train.proficiency is not None else spec.shape.shots, spec.shape.shots + 1):
            part = tasks._replace(support=first_examples(tasks.support, count, spec.kind))
            learner = worker.learner_for(replace(spec, shape=spec.shape._replace(shots=count)))
            found = score_tasks(learner, values, part, key, kind=spec.kind, outputs=spec.outputs)
            scores[count] = float(found.scores[0])
        loss = float(task_loss(spec.kind, found.predictions[0], tasks.query.y[0]))
    metrics = {"round": float(number), "round_loss": loss, "round_score": scores[count]}
    if train.proficiency is not None:
        metrics["round_examples"] = _examples_to(train.proficiency, scores, spec.kind)
    return metrics


def first_examples(support: Examples, count: int, kind: TaskKind) -> Examples:
    """Return the first `count` examples of each class of a batch of one support set; without classes, of all examples.

    Args:
        support: The support set `[1, n, ...]`.
        count: Number of examples.
        kind: The kind of the task.
    """
    y = support.y[0]
    position = torch.arange(len(y), device=y.device)
    if kind.classes:
        # How many examples of its class come before each example.
        position = (y.unsqueeze(0) == y.unsqueeze(1)).long().tril(-1).sum(1)
    chosen: Tensor = position < count
    return Examples(support.x[:, chosen], support.y[:, chosen])


def _examples_to(proficiency: float, scores: dict[int, float], kind: TaskKind) -> float:
    """Return the smallest number of examples with a score at least as good as `proficiency`."""
    good = [
        count
        for count, score in scores.items()
        if (score >= proficiency if kind.scale.higher_is_better else score <= proficiency)
    ]
    return float(min(good)) if good else math.inf
