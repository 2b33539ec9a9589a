"""Scores of a learner on consecutive episodes of a split: used by the evaluation of a run and by its validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import TaskKind, score
from metaforge.authoring.protocols import Dataset, Learner, Params, TaskSpec
from metaforge.data.batches import TaskBatch, episode_batches, examples_of
from metaforge.data.varied import EpisodeBounds
from metaforge.engine import plans
from metaforge.engine.batch import Scores, prepare_tasks, score_tasks
from metaforge.engine.plans import Plan


@dataclass(frozen=True)
class EvaluationCase:
    """What to evaluate: the spec of the tasks, the learner built for it, and the numbers of adaptation steps.

    `None` among the steps stands for the learner's own number of them, or for a learner that does not adapt in steps.
    Of tasks that vary within `bounds`, `spec` is the spec of the most ways, and `build` makes a learner for any other.
    """

    spec: TaskSpec
    learner: Learner
    steps: tuple[int | None, ...] = (None,)
    bounds: EpisodeBounds | None = None
    build: Callable[[TaskSpec], Learner] | None = None

    def learner_for(self, spec: TaskSpec) -> Learner:
        """Return the learner for tasks of a spec."""
        return self.learner if spec == self.spec or self.build is None else self.build(spec)


class EpisodeScores(NamedTuple):
    """The scores of consecutive episodes.

    `batches` are the tasks as the data set returned them, by shape; `scores` has a tensor `[tasks]` for each number of
    adaptation steps, and `measures` has the learner's own metrics, each `[tasks]`, after the last number of steps, both
    in the order of the episodes. `finite` says for each score whether all predictions for the task are finite.
    """

    batches: Sequence[TaskBatch]
    scores: tuple[Tensor, ...]
    measures: Params
    finite: tuple[Tensor, ...]


# Varied episodes that are sampled at a time; those of equal shape among them are computed together.
_SAMPLED_TOGETHER = 16


def together(case: EvaluationCase, device: torch.device, chunk: int | None) -> int:
    """Return how many episodes `score_episodes` should get at a time; `chunk` is the user's setting."""
    if case.bounds is not None:
        return _SAMPLED_TOGETHER
    return plans.choose_chunk(case.spec, device, chunk, training=False)


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
    chunk: int | None = None,
    rescore: bool = False,
    measure: bool = False,
) -> EpisodeScores:
    """Sample some episodes, compute those of equal shape together, and return their scores.

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
        chunk: The user's number of varied tasks to compute together; None leaves it to the rule. Tasks of a fixed shape
            are all computed together.
        rescore: Compute the scores again from the predictions, in float64 on the CPU. In bfloat16, for example, the
            mean of 75 zeros and ones is not exact.
        measure: Compute the learner's own metrics too.
    """
    sampled = episode_batches(dataset, split, case.spec, case.bounds, episodes, seed=seed)
    numbers: list[int] = []
    parts: list[tuple[list[Tensor], list[Tensor], Params]] = []
    for batch in sampled:
        size = len(batch.episodes)
        if case.bounds is not None:
            size = plans.choose_chunk(batch.spec, device, chunk, training=False, examples=examples_of(batch))
        for first in range(0, len(batch.episodes), size):
            part = slice(first, first + size)
            tasks = tree_map(lambda leaf, part=part: leaf[part], batch.tasks)
            numbers += batch.episodes[part]
            with_keys = measure or batch.spec.kind.needs_key
            keys = [make_key(seed, split, number) for number in batch.episodes[part]] if with_keys else None
            ready = TaskBatch(batch.episodes[part], batch.spec, prepare_tasks(tasks, device, dtype))
            targets = tasks.query.y
            parts.append(_scores(case, values, ready, targets, keys, plan=plan, rescore=rescore, measure=measure))
    order = torch.tensor(numbers).argsort()

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])[order.to(tensors[0].device)]

    scores, finite = (tuple(map(joined, zip(*(part[i] for part in parts), strict=True))) for i in (0, 1))
    measures = {name: joined([own[name] for *_, own in parts]) for name in parts[0][2]}
    return EpisodeScores(sampled, scores, measures, finite)


def _scores(
    case: EvaluationCase,
    values: Params,
    batch: TaskBatch,
    targets: Tensor,
    keys: Sequence[Tensor] | None,
    *,
    plan: Plan,
    rescore: bool,
    measure: bool,
) -> tuple[list[Tensor], list[Tensor], Params]:
    """Return, for tasks of one shape, the scores `[tasks]` for each number of steps, and whether they have one.

    The third result are the learner's own metrics.

    `keys` has one key per task, if any is needed; `targets` are those of the queries as the data set returned them.
    """
    learner, spec = case.learner_for(batch.spec), batch.spec
    stacked = None if keys is None else torch.stack([*keys]).to(batch.tasks.support.x.device)
    scores: list[Tensor] = []
    finite: list[Tensor] = []
    measures: Params = {}
    for steps in case.steps:
        last = steps == case.steps[-1]
        result = score_tasks(
            learner,
            values,
            batch.tasks,
            stacked,
            kind=spec.kind,
            steps=steps,
            plan=plan,
            measure=measure and last,
            outputs=spec.outputs,
        )
        own, is_finite = _finite_scores(spec.kind, result, targets, rescore=rescore)
        scores.append(own)
        finite.append(is_finite)
        measures = result.measures
    return scores, finite, measures


def _finite_scores(kind: TaskKind, result: Scores, targets: Tensor, *, rescore: bool) -> tuple[Tensor, Tensor]:
    """Return scores `[tasks]`, NaN for each task with a prediction that is not finite; and whether all are finite."""
    predictions, scores = result.predictions, result.scores
    if rescore:
        predictions, targets = predictions.cpu().double(), targets.cpu()
        targets = targets.double() if targets.is_floating_point() else targets
        scores = torch.stack([score(kind, *pair) for pair in zip(predictions, targets, strict=True)])
    finite = predictions.flatten(1).isfinite().all(1)
    return scores.where(finite, torch.nan), finite
