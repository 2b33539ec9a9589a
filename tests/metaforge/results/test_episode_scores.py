"""Scores of consecutive episodes: the same for any chunks, and NaN if a prediction is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_runs import FakeRun, Reader
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import TaskShape
from metaforge.results.episode_scores import EpisodeScores, EvaluationCase, episode_chunks, score_episodes

SHAPE = TaskShape(5, 1, 15)


def scored(
    episodes: range, steps: tuple[int | None, ...] = (None,), learner: type[Reader] = Reader, **more: Any
) -> EpisodeScores:
    run = FakeRun(None, learner=learner)
    spec = run.dataset.spec("test", SHAPE)
    settings: dict[str, Any] = {"split": "test", "seed": 7, "device": run.device, "dtype": run.dtype, "plan": "vmap"}
    case = EvaluationCase(spec, run.learner(spec), steps)
    return score_episodes(case, run.values, run.dataset, episodes, **{**settings, **more})


@pytest.mark.parametrize(
    ("episodes", "chunk", "expected"), [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)]), (3, 9, [(0, 3)])]
)
def test_chunks_cover_every_episode_once(episodes: int, chunk: int, expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in episode_chunks(episodes, chunk)] == expected


def test_there_is_a_tensor_of_scores_for_each_number_of_steps() -> None:
    result = scored(range(8), (0, 2))
    assert [scores.shape for scores in result.scores] == [(8,), (8,)]
    assert result.scores[0].tolist() == pytest.approx([0.2] * 8)
    assert result.scores[1].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0] * 2)
    assert [batch.episodes for batch in result.batches] == [range(8)]
    assert len(result.batches[0].tasks.query.x) == 8
    assert result.measures == {}


def test_a_chunk_that_starts_later_has_the_later_episodes() -> None:
    assert torch.equal(scored(range(3, 6)).scores[0], scored(range(8)).scores[0][3:6])


def test_own_metrics_are_computed_only_on_request_with_the_key_of_each_episode() -> None:
    measures = scored(range(2, 5), measure=True).measures
    assert measures["instance 1"].tolist() == [0.25] * 3
    assert measures["key"].tolist() == [int(make_key(7, "test", index)) % 1024 for index in range(2, 5)]


def test_scores_can_be_computed_again_in_float64() -> None:
    """Without a step the learner predicts class 0 for all queries, which is correct for a fifth of them."""
    plain = scored(range(1), (0,), dtype=torch.bfloat16).scores[0]
    exact = scored(range(1), (0,), dtype=torch.bfloat16, rescore=True).scores[0]
    assert (plain.dtype, exact.dtype) == (torch.float32, torch.float64)
    assert exact.item() == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize("rescore", [False, True])
def test_a_task_with_a_prediction_that_is_not_finite_has_the_score_nan(rescore: bool) -> None:
    class Broken(Reader):
        """Predicts an infinite value for the first query of tasks whose last pixel is not zero."""

        def predict(self, values: Any, fast: Any, x: Tensor, *, key: Any = None) -> Tensor:
            first = (torch.arange(len(x)) == 0).unsqueeze(1)
            return super().predict(values, fast, x) + torch.where(first & (x.flatten(1)[:, 15:] > 0), torch.inf, 0.0)

    scores = scored(range(4), learner=Broken, rescore=rescore).scores[0].tolist()
    assert math.isnan(scores[0])
    assert scores[1:] == pytest.approx([0.0, 1.0, 0.0])


def test_no_graph_is_kept() -> None:
    run = FakeRun(None)
    run.values["w"].requires_grad_()
    spec = run.dataset.spec("test", SHAPE)
    case = EvaluationCase(spec, run.learner(spec))
    result = score_episodes(
        case, run.values, run.dataset, range(2), split="test", seed=7, device=run.device, dtype=run.dtype, plan="loop"
    )
    assert not result.scores[0].requires_grad
