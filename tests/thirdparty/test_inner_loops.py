"""Third-party learners and adapters: a part of a network, a head of the task, a context, an implicit adjoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import metaforge
from inner_loop_plugins import ContextOnly, HeadOnly, Implicit, LossScaled, PrototypeHead, Signs, Twins
from metaforge.authoring import make_key
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.testing import Check, Subject, parametrize_with_checks
from metaforge.testing.toy import ToyClasses, ToyCurves

LEARNERS = {"head-only": HeadOnly, "twins": Twins, "prototype-head": PrototypeHead, "context-only": ContextOnly}
ADAPTERS = {"loss-scaled": LossScaled, "signs": Signs}


@parametrize_with_checks([*LEARNERS.values(), *ADAPTERS.values(), Implicit])
def test_they_pass_the_conformance_kit(subject: Subject, check: Check) -> None:
    check(subject)


@pytest.fixture(scope="module")
def registry() -> Registry:
    known = scan().with_plugin("dataset", "toy-classes", ToyClasses).with_plugin("dataset", "toy-curves", ToyCurves)
    for name, cls in {**LEARNERS, "implicit": Implicit}.items():
        known = known.with_plugin("learner", name, cls)
    for name, adapter in ADAPTERS.items():
        known = known.with_plugin("adapter", name, adapter)
    return known


def trained(registry: Registry, out: Path, learner: Any, **options: Any) -> metaforge.Run:
    """Return a short run on toy tasks."""
    task = {"ways": 3, "shots": 2, "queries": 3}
    settings = {"task": task, "train": {"log_every": 1, "validate_every": 0}, "evaluate": {"tasks": 20}}
    defaults: dict[str, Any] = {"backbone": {"name": "mlp", "widths": [8]}, "steps": 150, "tasks": 4, "lr": 0.01}
    return metaforge.train(
        learner, "toy-classes", settings=settings, out=out, registry=registry, **(defaults | options)
    )


# The kit's tasks want a strong proximal term, which converges in few steps; learning wants one that lets the head move.
@pytest.mark.parametrize("learner", [*LEARNERS, {"name": "implicit", "proximal": 0.5}], ids=[*LEARNERS, "implicit"])
def test_they_learn(registry: Registry, learner: Any, tmp_path: Path) -> None:
    adapters = {} if learner == "twins" else {"adapters": {"sgd": {"lr": 0.2}}}
    run = trained(registry, tmp_path / "run", learner, **adapters)
    found = run.evaluate()
    # Chance is a third; 20 tasks have an interval of ± 0.1.
    assert found["results"][-1]["scores"][-1]["mean"] > 0.6, found["results"][-1]["scores"]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_learns_rates_for_a_head_that_exists_only_in_a_task(
    registry: Registry, adapter: str, tmp_path: Path
) -> None:
    run = trained(registry, tmp_path / "run", "prototype-head", adapters=[adapter], steps=20)
    rates = [name for name in run.values if name.endswith("head.weight")]
    assert rates == ([f"adapters.{adapter}.rate.head.weight"] if adapter == "loss-scaled" else [])
    assert run.summary["outcome"] == "finished"


def test_a_learner_that_adapts_the_head_leaves_the_body_and_its_statistics_as_they_are(
    registry: Registry, tmp_path: Path
) -> None:
    run = trained(registry, tmp_path / "run", "head-only", adapters={"sgd": {"lr": 0.2}}, steps=3)
    learner, task = run.learner(), run.task()
    fast = learner.adapt(run.values, task.support)
    assert set(fast) == {"model.2.weight", "model.2.bias"}


def test_a_backbone_without_context_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes no context, which the learner adapts"):
        trained(registry, tmp_path / "run", "context-only", backbone=torch.nn.Linear(6, 8), adapters=["sgd"], steps=1)


def test_two_networks_have_values_of_their_own(registry: Registry, tmp_path: Path) -> None:
    run = trained(registry, tmp_path / "run", "twins", steps=1)
    assert {name.split(".")[0] for name in run.values} == {"memory", "question"}
    drawn = run.learner().init(make_key(0))
    assert not torch.equal(drawn["memory.1.weight"], drawn["question.1.weight"])


def test_the_residual_of_the_implicit_adjoint_is_a_metric(registry: Registry, tmp_path: Path) -> None:
    adapters = {"sgd": {"lr": 0.2}}
    trained(registry, tmp_path / "run", "implicit", adapters=adapters, steps=2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert all('"inner_residual": ' in line for line in lines)
    assert all('"solver_residual": ' in line for line in lines)


def test_an_implicit_adjoint_that_nobody_could_judge_is_refused(registry: Registry, tmp_path: Path) -> None:
    learner = {"name": "prototype-head", "adjoint": "implicit", "proximal": 1.0}
    with pytest.raises(ConfigError, match="The loss of PrototypeHead has no metric inner_residual"):
        trained(registry, tmp_path / "run", learner, adapters=["sgd"], steps=2)


@pytest.mark.parametrize("norm", ["support", "per-step"])
def test_a_context_is_adapted_under_every_policy(registry: Registry, norm: str, tmp_path: Path) -> None:
    learner = {"name": "context-only", "norm": norm, "steps": 3}
    run = trained(registry, tmp_path / "run", learner, adapters={"sgd": {"lr": 1.0}}, steps=3)
    assert run.summary["outcome"] == "finished"
