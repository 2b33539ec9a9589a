"""MAML: the exact meta-gradient, by differences and against the closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional as F

import metaforge
from metaforge.authoring.functional import detach_params, split_state
from metaforge.authoring.keys import make_key
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    assert_true_gradient,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)


@pytest.mark.parametrize("adapt", ["weights", "all"])
@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str, adapt: str) -> None:
    assert_loss_has_its_gradient(learner(MAML, backbone=smooth("batch"), steps=3, norm=norm, adapt=adapt))


@pytest.mark.parametrize("backbone", ["none", "layer"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_finite_differences_of_both_kinds_with_learned_rates(kind: str, backbone: str) -> None:
    rates = {"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.2))}
    built = learner(MAML, kind=kind, backbone=smooth(backbone), adapters=rates, steps=2)  # type: ignore[arg-type]
    assert_loss_has_its_gradient(built, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(MAML, backbone=smooth("batch"), steps=2, norm=norm, adapt="all")
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "vmap", chunk=3), looped)
    assert set(looped.metrics) == {"score"}


def test_one_step_is_the_closed_form() -> None:
    # (I − αH) g_Q(θ'), the Hessian of the support loss taken at θ.
    built = learner(MAML, steps=1, adapters={"sgd": SGD(SGDOptions(lr=0.3))})
    values, example = fresh(built), task()
    names = list(values)
    sizes = [values[n].numel() for n in names]

    def unflat(vector: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = vector.split(sizes)
        return {n: piece.reshape(values[n].shape) for n, piece in zip(names, pieces, strict=True)}

    def loss(vector: torch.Tensor, part: int) -> torch.Tensor:
        return F.cross_entropy(built.model(unflat(vector), example[part].x), example[part].y)

    theta = torch.cat([values[n].flatten() for n in names])
    hessian = torch.func.jacrev(grad(loss))(theta, 0)
    query = grad(loss)(theta - 0.3 * grad(loss)(theta, 0), 1)
    expected = unflat(query - 0.3 * hessian @ query)
    found = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_without_a_rate_it_is_the_plain_query_gradient(cls: type[MAML]) -> None:
    built = learner(cls, backbone=smooth("batch"), steps=2, adapters={"sgd": SGD(SGDOptions(lr=0.0))})
    values, example = fresh(built), task()
    plain = lambda v: F.cross_entropy(built.predict(v, {}, example.query.x), example.query.y)  # noqa: E731
    found, expected = grad(lambda v: built.loss(v, example, KEY)[0])(values), grad(plain)(values)
    assert built.loss(values, example, KEY)[0] == pytest.approx(float(plain(values)), rel=1e-12)
    for name in values:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_a_frozen_constant_rate_is_the_fixed_rate_to_the_bit() -> None:
    fixed = learner(MAML, backbone=smooth("batch"), steps=1, adapters={"sgd": SGD(SGDOptions(lr=0.3))})
    rated = learner(MAML, backbone=smooth("batch"), steps=1, adapters={"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.3))})
    values = fresh(fixed)
    rates = {n: torch.full_like(v, 0.3) for n, v in rated.init(KEY).items() if n.startswith("adapters.")}
    rates = {n: torch.full(v.shape, 0.3, dtype=torch.float64) for n, v in rates.items()}
    ours, theirs = step(fixed, values, tasks(2)), step(rated, values | rates, tasks(2))
    assert torch.equal(ours.losses, theirs.losses)
    assert all(torch.equal(ours.grads[name], theirs.grads[name]) for name in values)


def test_learned_rates_have_the_gradient_of_the_paper() -> None:
    # ∂L_Q/∂α = −g_S(θ) ∘ g_Q(θ') for one step, in first and in second order.
    rates = {"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.3))}
    found = {}
    for cls in (MAML, FOMAML):
        built = learner(cls, steps=1, adapters=rates)
        values, example = fresh(built), task()
        found[cls] = grad(lambda v, b=built, e=example: b.loss(v, e, KEY)[0])(values)
        plain = lambda v, part, b=built, e=example: F.cross_entropy(b.model(v, e[part].x), e[part].y)  # noqa: E731
        support = grad(plain)(values, 0)
        query = grad(plain)(values | built.adapt(values, example.support, key=KEY), 1)
        for name in built.adapted:
            rate = f"adapters.meta-sgd.rate.{name}"
            torch.testing.assert_close(found[cls][rate], -support[name] * query[name], rtol=1e-9, atol=1e-13)
    assert not torch.allclose(found[MAML]["model.0.0.weight"], found[FOMAML]["model.0.0.weight"])


@pytest.mark.parametrize("norm", ["running", "per-step"])
def test_running_statistics_leave_in_the_state(norm: str) -> None:
    built = learner(MAML, backbone=smooth("batch"), steps=2, norm=norm)
    values = fresh(built)
    params, state = split_state(values)
    change = built.loss(values, task(), KEY)[1].state
    assert set(change) == set(state) != set()
    slots = change["state.model.0.1.mean"].reshape(-1, 4).abs().sum(1) > 0
    assert slots.all()
    # The statistics are no parameters, and the loss of training does not depend on them.
    moved = params | {name: value + 1 for name, value in state.items()}
    assert torch.equal(built.loss(values, task(), KEY)[0], built.loss(moved, task(), KEY)[0])


def test_running_statistics_stay_sane_over_many_inner_steps() -> None:
    built = learner(MAML, backbone=smooth("batch"), steps=30, norm="running")
    values = fresh(built)
    for _ in range(3):
        values |= {n: values[n] + change for n, change in built.loss(values, task(), KEY)[1].state.items()}
    assert all(bool((v > 0).all()) for n, v in values.items() if n.startswith("state.") and n.endswith(".var"))


@pytest.mark.parametrize("norm", ["transductive", "support", "per-step"])
def test_evaluation_predicts_what_training_scores(norm: str) -> None:
    # Without noise, an evaluation of the same task by as many steps has the same predictions as training.
    built = learner(MAML, backbone=smooth("batch"), steps=2, test_steps=2, norm=norm)
    values, example = fresh(built), task()
    values |= {n: values[n] + change for n, change in built.loss(values, example, KEY)[1].state.items()}
    predicted = built.predict(values, built.adapt(values, example.support), example.query.x)
    torch.testing.assert_close(
        F.cross_entropy(predicted, example.query.y), built.loss(values, example, KEY)[0], rtol=1e-12, atol=1e-12
    )


def test_per_step_scores_on_test_tasks_as_it_did_in_training(tmp_path: Path) -> None:
    run = metaforge.train(
        {"name": "maml", "steps": 3, "test_steps": 3, "norm": "per-step"},
        {"name": "glyphs", "train": 200, "test": 50},
        steps=100,
        tasks=5,
        lr=1e-2,
        out=tmp_path / "run",
        settings={
            "backbone": {"filters": 16},
            "engine": {"threads": 1},
            "task": {"queries": 5},
            "train": {"log_every": 50},
        },
    )
    record = run.evaluate(tasks=60)
    trained, tested = run.summary["score"], record["results"][0]["scores"][-1]["mean"]
    # With running statistics in the inner loop of evaluation the test score was 0.26.
    assert trained > 0.6
    assert abs(trained - tested) < 0.1
    assert record["transductive"] is True


def test_the_loss_backpropagates_by_autograd_too() -> None:
    built = learner(MAML, backbone=smooth("batch"), steps=2)
    values = {name: value.requires_grad_() for name, value in fresh(built).items()}
    built.loss(values, task(), KEY)[0].backward()
    expected = grad(lambda v: built.loss(v, task(), KEY)[0])(detach_params(values))
    for name, value in values.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, expected[name])


def test_a_users_own_convolutional_module() -> None:
    torch_module = lambda: nn.Sequential(  # noqa: E731
        nn.Unflatten(1, (1, 1, 3)),
        nn.Conv2d(1, 3, (1, 2)),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.AvgPool2d((1, 2)),
        nn.Flatten(),
    )
    built = learner(MAML, backbone=torch_module, steps=2, adapt="all")
    values, batch = fresh(built), tasks(3)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_loss_has_its_gradient(built)
    assert_true_gradient(lambda v: built.loss(v, task(1), KEY)[0], values)
