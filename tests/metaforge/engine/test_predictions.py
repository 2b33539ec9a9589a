"""Predictions of a wrong shape are an error of the plugin, wherever they would be scored."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_runs import FakeRun, Reader
from metaforge.authoring.protocols import TaskShape
from metaforge.engine.predictions import require_prediction
from metaforge.errors import PluginError
from metaforge.results.episode_scores import EvaluationCase, score_episodes


class Narrow(Reader):
    """Predicts two classes, however many there are."""

    def predict(self, *arguments: Any, **options: Any) -> Tensor:
        return super().predict(*arguments, **options)[:, :2]


LEARNER = FakeRun(None).learner(FakeRun(None).dataset.spec("test", TaskShape(5, 1, 15)))


@pytest.mark.parametrize(
    ("prediction", "described"),
    [
        (torch.zeros(75, 2), "shape [75, 2]"),
        (torch.zeros(5, 75), "shape [5, 75]"),
        (torch.zeros(75), "shape [75]"),
        (torch.zeros(75, 5, 1), "shape [75, 5, 1]"),
        (None, "a NoneType"),
        ([0.0], "a list"),
    ],
)
def test_only_one_row_per_query_and_one_column_per_output_is_accepted(prediction: object, described: str) -> None:
    require_prediction(LEARNER, torch.zeros(75, 5), 75, 5)
    with pytest.raises(
        PluginError, match=re.escape(f"The learner Reader predicts {described} for 75 queries")
    ) as raised:
        require_prediction(LEARNER, prediction, 75, 5)
    assert "must return a tensor of shape [75, 5]" in raised.value.what
    assert raised.value.where.endswith(":Reader")


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_scores_of_too_few_classes_are_refused_under_every_plan(plan: Any) -> None:
    run = FakeRun(None, learner=Narrow)
    spec = run.dataset.spec("test", TaskShape(5, 1, 15))
    settings: dict[str, Any] = {"split": "test", "seed": 7, "device": run.device, "dtype": run.dtype}
    with pytest.raises(PluginError, match=r"The learner Narrow predicts shape \[75, 2\]"):
        score_episodes(
            EvaluationCase(spec, run.learner(spec)), run.values, run.dataset, range(2), plan=plan, **settings
        )
