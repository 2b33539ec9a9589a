"""TAML by inequality: the five measures of losses, and the meta-gradient with them, by every plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

import metaforge
from metaforge.errors import ConfigError
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.regularizers.taml_inequality import TAMLInequality
from toys import assert_equal_steps, assert_true_gradient, fresh, learner, smooth, step, task, tasks

NAMES = ("model.0.0.weight", "model.0.0.bias", "model.2.weight", "model.2.bias")
MEASURES = ("theil", "generalised-entropy", "atkinson", "gini", "variance-of-logs")
LOSSES = torch.arange(1.0, 5.0, dtype=torch.float64)


def inequality(measure: str = "theil", weight: float = 1.0, **options: float) -> TAMLInequality:
    """Return the regularizer."""
    return TAMLInequality(TAMLInequality.Config(measure=measure, weight=weight, **options))


def of(losses: Tensor, measure: str, **options: float) -> Tensor:
    """Return the inequality of losses."""
    term = inequality(measure, **options).combine(torch.ones_like(losses), {"loss_before": losses})
    assert term is not None
    return term


def built(cls: type[Any], regularizer: TAMLInequality, **options: Any) -> Any:
    """Return a learner that gives the terms of the regularizer."""
    return learner(cls, regularizers={"taml-inequality": regularizer}, **options)


def logits(weights: list[Tensor], x: Tensor) -> Tensor:
    """Return the logits of the toy network in plain PyTorch."""
    first, shift, second, bias = weights
    return torch.tanh(x @ first.T + shift) @ second.T + bias


@pytest.mark.parametrize(
    ("measure", "expected"), [*zip(MEASURES, (0.1064401, 0.1, 0.0555859, 0.25, 0.2710519), strict=True)]
)
def test_the_measures_of_four_losses(measure: str, expected: float) -> None:
    assert float(of(LOSSES, measure)) == pytest.approx(expected, abs=1e-7)
    assert float(of(LOSSES, measure, weight=3.0)) == pytest.approx(3 * expected, abs=3e-7)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_losses_have_no_inequality_and_no_gradient(measure: str) -> None:
    for size in (0.0, 0.7, 3.0):
        equal = torch.full((4,), size, dtype=torch.float64)
        assert abs(float(of(equal, measure))) < 1e-12
        assert grad(lambda x: of(x, measure))(equal).abs().max() < 1e-7 * (1 if size == 0 else 1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_multiples_of_the_losses_have_the_same_inequality(measure: str) -> None:
    torch.testing.assert_close(of(1000 * LOSSES, measure), of(LOSSES, measure), rtol=1e-7, atol=0)
    # Which is also true where the size of the losses has no effect on the gradient: it is orthogonal to them.
    assert abs(float(grad(lambda x: of(x, measure))(LOSSES) @ LOSSES)) < 1e-7


@pytest.mark.parametrize("measure", MEASURES)
def test_the_gradient_is_that_of_central_differences(measure: str) -> None:
    assert_true_gradient(lambda values: of(values["losses"], measure), {"losses": LOSSES[[2, 0, 3, 1]]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", MEASURES)
def test_losses_of_zero_have_a_finite_inequality_and_gradient(measure: str, dtype: torch.dtype) -> None:
    losses = torch.tensor([0.0, 0.0, 2.0], dtype=dtype)
    found = of(losses, measure)
    assert found.isfinite()
    assert float(found) > 0.1
    assert grad(lambda x: of(x, measure))(losses).isfinite().all()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_generalised_entropy_is_continuous_where_its_formula_divides_by_zero(limit: float) -> None:
    shares = LOSSES / LOSSES.mean()
    exact = {0.0: -shares.log().mean(), 1.0: of(LOSSES, "theil")}[limit]
    torch.testing.assert_close(of(LOSSES, "generalised-entropy", alpha=limit), exact)
    for distance in (-1e-5, 1e-9, -1e-9):
        close = of(LOSSES, "generalised-entropy", alpha=limit + distance)
        torch.testing.assert_close(close, exact, rtol=2 * abs(distance) + 1e-7, atol=0)


@pytest.mark.parametrize("alpha", [-1.5, 0.3, 0.6, 3.0])
def test_generalised_entropy_is_its_formula(alpha: float) -> None:
    shares = LOSSES / LOSSES.mean()
    expected = ((shares**alpha - 1) / (alpha * (alpha - 1))).mean()
    torch.testing.assert_close(of(LOSSES, "generalised-entropy", alpha=alpha), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("epsilon", [0.2, 1.0 - 1e-9, 1.0, 1.0 + 1e-9, 1.7])
def test_atkinson_is_its_formula_and_continuous(epsilon: float) -> None:
    shares = LOSSES / LOSSES.mean()
    power = 1 - epsilon
    expected = 1 - ((shares**power).mean() ** (1 / power) if abs(power) > 1e-3 else shares.log().mean().exp())
    torch.testing.assert_close(of(LOSSES, "atkinson", epsilon=epsilon), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_the_meta_gradient_is_that_of_plain_autograd(cls: type[Any]) -> None:
    regularizer = inequality("theil", 0.7)
    one = built(cls, regularizer, steps=2)
    values, batch = fresh(one), tasks(3)
    leaves = [values[name].clone().requires_grad_() for name in NAMES]
    before, after = [], []
    for example in (task(seed) for seed in range(3)):
        fast = leaves
        for _ in range(2):
            loss = F.cross_entropy(logits(fast, example.support.x), example.support.y)
            grads = torch.autograd.grad(loss, fast, create_graph=cls is MAML, retain_graph=True)
            fast = [w - 0.3 * g for w, g in zip(fast, grads, strict=True)]
        before.append(F.cross_entropy(logits(leaves, example.query.x), example.query.y))
        after.append(F.cross_entropy(logits(fast, example.query.x), example.query.y))
    shares = torch.stack(before) / sum(before) * 3
    total = sum(after) / 3 + 0.7 * (shares * shares.log()).mean()
    found = step(one, values, batch, regularizers=[regularizer])
    for name, expected in zip(NAMES, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(found.grads[name], expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_plan_gives_the_same(measure: str) -> None:
    regularizer = inequality(measure)
    one = built(MAML, regularizer, backbone=smooth("batch"), steps=2)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch, regularizers=[regularizer])
    for plan in ("vmap", "fold"):
        for chunk in (None, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk, regularizers=[regularizer]), looped)


@pytest.mark.parametrize("measure", MEASURES)
def test_without_a_weight_it_is_the_learner_itself_to_the_bit(measure: str) -> None:
    regularizer = inequality(measure, 0.0)
    one = built(FOMAML, regularizer, steps=2)
    values, batch = fresh(one), tasks(3)
    ours, theirs = step(one, values, batch, regularizers=[regularizer]), step(learner(FOMAML, steps=2), values, batch)
    assert torch.equal(ours.losses, theirs.losses)
    assert all(torch.equal(ours.grads[name], grad) for name, grad in theirs.grads.items())


def test_one_task_is_refused_by_name(tmp_path: Path) -> None:
    one = torch.ones(1)
    with pytest.raises(ConfigError, match="has only one task"):
        inequality().combine(one, {"loss_before": one})
    with pytest.raises(ConfigError, match=r"where: train\.tasks"):
        metaforge.train("maml", "glyphs", regularizers=["taml-inequality"], tasks=1, steps=1, out=tmp_path / "run")
    # It was refused before the run began.
    assert not (tmp_path / "run").exists()


def test_a_training_on_sinusoids_makes_the_losses_more_equal(tmp_path: Path) -> None:
    found = []
    for weight in (0.0, 3.0):
        settings = {"regularizers": {"taml-inequality": {"weight": weight}}, "engine": {"threads": 1}}
        out = tmp_path / f"{weight}"
        run = metaforge.train("fomaml", "sinusoid", steps=150, tasks=8, lr=5e-3, settings=settings, out=out)
        network = run.learner()
        losses = [
            float((network.predict(run.values, network.adapt(run.values, t.support, steps=0), t.query.x) - t.query.y)
                  .square().mean())
            for t in map(run.task, range(40))
        ]  # fmt: skip
        found.append(float(of(torch.tensor(losses), "theil")))
    assert found[1] < found[0]
