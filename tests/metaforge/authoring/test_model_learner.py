"""The base class of learners with one network."""

from __future__ import annotations

import torch
from torch import nn

from metaforge.authoring.keys import fold_in, make_key
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.protocols import Options, Parts, TaskShape, TaskSpec

KEY = make_key(0)
SPEC = TaskSpec("classification", (3,), 2, TaskShape(2, 3, 3))


def test_a_learner_of_a_model_has_its_values_and_its_norm_policy() -> None:
    class Small(ModelLearner):
        """Does nothing but hold a model."""

        Config = Options

    parts = Parts(SPEC, lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    options = Options()
    one = Small(options, parts, norm="per-step", steps=2, outputs=5)  # type: ignore[abstract]
    assert (one.config, one.spec, one.norm, one.transductive) == (options, SPEC, "per-step", True)
    values = one.init(KEY)
    expected = one.model.init(fold_in(KEY, "model"))
    assert values["state.model.0.1.mean"].shape == (3, 4)
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in values)
    assert one.model(values, torch.zeros(2, 3)).shape == (2, 5)
    assert Small(options, parts).transductive  # type: ignore[abstract]
