"""Both forms of task-agnostic meta-learning as regularizers, which read terms of a task before and after adaptation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor

import metaforge
from metaforge.authoring import Options, Params, Regularizer
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses, ToyNet


class TamlOptions(Options):
    """Options of both forms."""

    weight: float = Field(0.5, ge=0, le=100, description="weight of the term (λ in the paper)")


class EntropyTaml(Regularizer):
    """Rewards predictions that are uncertain before the adaptation and certain after it.

    Jamal, Qi, "Task-Agnostic Meta-Learning for Few-Shot Learning", CVPR 2019, entropy-maximisation.
    """

    Config = TamlOptions
    terms = frozenset({"entropy_before", "entropy_after"})

    def __init__(self, config: TamlOptions) -> None:
        self.config = config

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        return self.config.weight * (terms["entropy_after"] - terms["entropy_before"]).mean()


class TheilTaml(Regularizer):
    """Penalises the inequality of the losses before the adaptation, measured by the Theil index.

    The same paper, inequality-minimisation.
    """

    Config = TamlOptions
    terms = frozenset({"loss_before"})

    def __init__(self, config: TamlOptions) -> None:
        self.config = config

    def combine(self, losses: Tensor, terms: Params) -> Tensor:
        before = terms["loss_before"] + 1e-8
        shares = before / before.mean()
        return self.config.weight * (shares * shares.log()).mean()


FORMS = {"entropy-taml": EntropyTaml, "theil-taml": TheilTaml}
REGISTRY = scan().with_plugin("dataset", "toy", ToyClasses).with_plugin("backbone", "toy-net", ToyNet)
for _name, _cls in FORMS.items():
    REGISTRY = REGISTRY.with_plugin("regularizer", _name, _cls)


@parametrize_with_checks([EntropyTaml, TheilTaml])
def test_both_forms_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


def trained(out: Path, learner: str = "maml", **more: Any) -> metaforge.Run:
    options = {"backbone": "toy-net", "adapters": ["sgd"], "steps": 10, "tasks": 4, "registry": REGISTRY} | more
    settings = {"train": {"queries": 3}, "engine": {"threads": 1}, "evaluate": {"tasks": 20}}
    return metaforge.train(learner, options.pop("dataset", "toy"), out=out, settings=settings, **options)


@pytest.mark.parametrize("learner", ["maml", "fomaml"])
@pytest.mark.parametrize("name", FORMS)
def test_each_form_changes_a_training_unless_its_weight_is_zero(name: str, learner: str, tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", learner)
    without = trained(tmp_path / "without", learner, regularizers={name: {"weight": 0.0}})
    with_it = trained(tmp_path / "with", learner, regularizers=[name])
    assert with_it.summary["steps"] == 10
    for entry, value in plain.values.items():
        torch.testing.assert_close(without.values[entry], value, rtol=1e-4, atol=1e-5)
    assert not all(torch.allclose(with_it.values[entry], value, rtol=1e-3) for entry, value in plain.values.items())


def test_the_entropy_falls_with_the_adaptation_more_than_without_the_regularizer(tmp_path: Path) -> None:
    falls = []
    for name, regularizers in (("plain", {}), ("taml", {"entropy-taml": {"weight": 3.0}})):
        run = trained(tmp_path / name, steps=150, regularizers=regularizers)
        learner, fall = run.learner(), 0.0
        for index in range(10):
            task = run.task(index)
            before, after = (
                learner.predict(run.values, learner.adapt(run.values, task.support, steps=steps), task.query.x)
                for steps in (0, 3)
            )
            entropies = [-(p.softmax(-1) * p.log_softmax(-1)).sum(-1).mean() for p in (before, after)]
            assert entropies[0] <= math.log(5) + 1e-6
            fall += float(entropies[0] - entropies[1])
        falls.append(fall)
    assert falls[1] > falls[0]


def test_the_inequality_is_the_theil_index() -> None:
    """The fixture F5: losses 1, 2, 3, 4; equal losses have neither inequality nor gradient."""
    theil = TheilTaml(TamlOptions(weight=1.0))
    losses = torch.arange(1.0, 5.0, dtype=torch.float64)
    assert float(theil.combine(losses, {"loss_before": losses})) == pytest.approx(0.1064401, abs=1e-7)
    equal = torch.full((4,), 2.0, dtype=torch.float64)
    grads, value = torch.func.grad_and_value(lambda x: theil.combine(equal, {"loss_before": x}))(equal)
    torch.testing.assert_close(value, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(grads, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("learner", ["protonet", "reptile"])
def test_a_learner_that_does_not_give_the_terms_is_refused_by_name(learner: str, tmp_path: Path) -> None:
    adapters = None if learner == "protonet" else ["sgd"]
    with pytest.raises(ConfigError, match=f"'entropy-taml' reads .*, which the learner '{learner}' does not give"):
        trained(tmp_path / "run", learner, regularizers=["entropy-taml"], adapters=adapters)
    assert not (tmp_path / "run").exists()


def test_tasks_without_classes_have_no_entropy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"entropy_after and entropy_before.*classification only"):
        trained(tmp_path / "run", dataset="sinusoid", backbone="mlp", regularizers=["entropy-taml"])
    run = trained(tmp_path / "theil", dataset="sinusoid", backbone="mlp", regularizers=["theil-taml"], steps=2)
    assert run.summary["steps"] == 2
