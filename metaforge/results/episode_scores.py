"""Scores of a learner on consecutive episodes of a split: used by the evaluation of a run and by its validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from metaforge.authoring.keys import make_key
from metaforge.authoring.losses import score
from metaforge.authoring.protocols import Dataset, Kind, Learner, Params, Task, TaskSpec
from metaforge.data.checks import expected_tasks
from metaforge.engine.batch import Scores, prepare_tasks, score_tasks
from metaforge.engine.plans import Plan


@dataclass(frozen=True)
class EvaluationCase:
    """What to evaluate: the spec of the tasks, the learner built for it, and the numbers of adaptation steps.

    `None` among the steps stands for the learner's own number of them, or for a learner that does not adapt in steps.
    """

    spec: TaskSpec
    learner: Learner
    steps: tuple[int | None, ...] = (None,)


class EpisodeScores(NamedTuple):
    """The scores of consecutive episodes that were computed together.

    `tasks` are the tasks as the data set returned them, `scores` has a tensor `[tasks]` for each number of adaptation
    steps, and `measures` has the learner's own metrics, each `[tasks]`, after the last number of steps.
    """

    tasks: Task
    scores: tuple[Tensor, ...]
    measures: Params


def episode_chunks(episodes: int, chunk: int) -> Iterator[range]:
    """Yield the numbers of the first `episodes` episodes, as consecutive ranges of at most `chunk`."""
    for first in range(0, episodes, chunk):
        yield range(first, min(first + chunk, episodes))


@torch.no_grad()
def score_episodes(
    case: EvaluationCase,
    values: Params,
    dataset: Dataset,
    episodes: range,
    *,
    split: str,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    plan: Plan,
    rescore: bool = False,
    measure: bool = False,
) -> EpisodeScores:
    """Sample some episodes, compute them together, and return their scores.

    A task has the score NaN if any of its predictions is not finite: an accuracy would not show that.

    Args:
        case: Spec of the tasks, learner and numbers of adaptation steps.
        values: The learner's values, on `device`.
        dataset: Data set that the episodes are sampled from.
        episodes: The numbers of the episodes, consecutive and not empty.
        split: Split of the data set.
        seed: Seed of the episodes.
        device: Device to compute on.
        dtype: Precision to compute in.
        plan: The engine's plan for a batch of tasks.
        rescore: Compute the scores again from the predictions, in float64 on the CPU. In bfloat16, for example, the
            mean of 75 zeros and ones is not exact.
        measure: Compute the learner's own metrics too.
    """
    sampled = dataset.sample(split, case.spec.shape, episodes[0], len(episodes), seed=seed)
    tasks = expected_tasks(dataset, sampled, case.spec, len(episodes))
    batch = prepare_tasks(tasks, device, dtype)
    keys = torch.stack([make_key(seed, split, episode) for episode in episodes]).to(device) if measure else None
    scores: list[Tensor] = []
    measures: Params = {}
    for steps in case.steps:
        last = steps == case.steps[-1]
        result = score_tasks(
            case.learner,
            values,
            batch,
            keys,
            steps=steps,
            plan=plan,
            measure=measure and last,
            outputs=case.spec.outputs,
        )
        scores.append(_finite_scores(case.spec.kind, result, tasks.query.y, rescore=rescore))
        measures = result.measures
    return EpisodeScores(tasks, tuple(scores), measures)


def _finite_scores(kind: Kind, result: Scores, targets: Tensor, *, rescore: bool) -> Tensor:
    """Return scores `[tasks]`, NaN for each task with a prediction that is not finite."""
    predictions, scores = result.predictions, result.scores
    if rescore:
        predictions, targets = predictions.cpu().double(), targets.cpu()
        targets = targets.double() if targets.is_floating_point() else targets
        scores = torch.stack([score(kind, *pair) for pair in zip(predictions, targets, strict=True)])
    return scores.where(predictions.flatten(1).isfinite().all(1), torch.nan)
