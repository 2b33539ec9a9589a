"""MAML++: each part against MAML, the fixtures, and plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.progress import with_progress
from metaforge.authoring.protocols import SHARE, Examples, Params, Parts, Task, TaskShape, TaskSpec
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.lslr import LSLR, LSLROptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.mamlpp import MAMLPlusPlus, step_weights
from toys import (
    POLICIES,
    THETA,
    A,
    B,
    H,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    close,
    fresh,
    learner,
    sgd,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
# Every part that is an option, switched off.
OFF: dict[str, Any] = {"multi_step": 0, "first_order": 0, "per_step_norm": False}


def lslr(steps: int, lr: float = 0.3) -> dict[str, LSLR]:
    """Return a chain of learned rates."""
    return {"lslr": LSLR(LSLROptions(steps=steps, lr=lr))}


def built(cls: Any = MAMLPlusPlus, **options: Any) -> Any:
    """Return a learner with batch norm."""
    return learner(cls, backbone=smooth("batch"), **options)


def at(values: Params, share: float) -> Params:
    """Return values at a share of the training."""
    return with_progress(values, 0, share)


# Equal to MAML and first-order MAML.


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("norm", POLICIES)
def test_with_all_parts_off_it_is_maml_to_the_bit(norm: str, steps: int) -> None:
    ours, theirs = built(steps=steps, norm=norm, adapt="all", **OFF), built(MAML, steps=steps, norm=norm, adapt="all")
    first, second = ours.init(KEY), theirs.init(KEY)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert ours.during(0.0) is ours.during(1.0) is ours
    values, batch = fresh(ours), tasks(2)
    for plan in ("loop", "vmap", "fold"):
        assert_equal_steps(step(ours, values, batch, plan), step(theirs, values, batch, plan), tolerance=0.0)
    fast = theirs.adapt(values, task().support)
    assert ours.adapt(values, task().support).keys() == fast.keys()
    assert all(torch.equal(value, fast[name]) for name, value in ours.adapt(values, task().support).items())


def test_with_the_last_loss_and_tied_frozen_rates_it_is_maml_to_the_bit() -> None:
    options: dict[str, Any] = {"adapters": lslr(3), "frozen": ("adapters.*",), "steps": 3}
    ours, theirs = built(multi_step=0.5, per_step_norm=False, **options), built(MAML, steps=3)
    values, batch = at(fresh(ours), 0.5), tasks(2)
    values |= {n: torch.full_like(v, 0.3) for n, v in values.items() if n.startswith("adapters.")}
    mamls = {name: value for name, value in values.items() if name in fresh(theirs)}
    expected = step(theirs, mamls, batch)
    assert ours.during(0.5) is not ours
    # Once with the loss of all steps, whose weights are (0, 0, 1), and once in the phase with the last loss alone.
    for phase in (ours, ours.during(0.5)):
        found = step(phase, values, batch, frozen=("adapters.*",))
        assert found.grads.keys() == expected.grads.keys()
        assert torch.equal(found.losses, expected.losses)
        assert all(torch.equal(found.grads[name], expected.grads[name]) for name in expected.grads)


def test_the_first_order_phase_is_first_order_maml_to_the_bit() -> None:
    ours, theirs = built(steps=3, **(OFF | {"first_order": 0.4})), built(FOMAML, steps=3, norm="per-step")
    early, late = ours.during(0.39), ours.during(0.4)
    assert late is ours
    assert early is ours.during(0.0) is not ours
    values, batch = fresh(ours), tasks(2)
    assert_equal_steps(step(early, values, batch), step(theirs, values, batch), tolerance=0.0)
    assert not torch.allclose(
        step(early, values, batch).grads["model.0.0.weight"], step(late, values, batch).grads["model.0.0.weight"]
    )


def test_the_phases_are_chosen_by_the_share_alone_and_have_the_same_values() -> None:
    ours = built(steps=3, adapters=lslr(3), multi_step=0.2, first_order=0.6)
    phases = [ours.during(share) for share in (0.0, 0.1, 0.2, 0.5, 0.6, 1.0)]
    names = [(phase.adjoint.method, phase.every_step) for phase in phases]
    assert names == [("first-order", True)] * 2 + [("first-order", False)] * 2 + [("unroll", False)] * 2
    assert phases[0] is phases[1]
    assert phases[2] is phases[3]
    shapes = {name: value.shape for name, value in ours.init(KEY).items()}
    assert all({name: value.shape for name, value in phase.init(KEY).items()} == shapes for phase in phases)
    assert (ours.adjoint.method, ours.every_step) == ("unroll", True)


# The multi-step loss.


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.96, 0.99, 1.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_weights_of_the_losses(steps: int, share: float) -> None:
    weights = step_weights(steps, torch.tensor(share, dtype=torch.float64))
    assert weights.shape == (steps,)
    close(weights.sum(), 1.0, rtol=1e-15)
    other = 0.0 if share >= 1 else max(1 - share, 0.03) / steps
    close(weights[:-1], *[other] * (steps - 1), rtol=1e-15)
    assert share < 1 or weights[-1] == 1


def f1(**options: Any) -> Any:
    """Return the fixture F1 as a regression: with Lᵀ L = H, the mean squared error of Lᵀθ is (θ − c)ᵀ H (θ − c) / 2."""
    spec = TaskSpec("regression", (2,), 1, TaskShape(1, 2, 2))
    parts = Parts(spec, lambda: nn.Identity(), options.pop("chain", sgd(0.1)))
    return MAMLPlusPlus(MAMLPlusPlus.Config(steps=2, adapt=["model.2.weight"], **options), parts)


def f1_gradient(built: Any, rates: tuple[float, ...] = ()) -> tuple[Tensor, Params]:
    """Return the gradient with respect to θ, and all gradients."""
    x = torch.linalg.cholesky(H).T
    example = Task(*(Examples(x, (x @ centre).unsqueeze(1)) for centre in (A, B)))
    zero = THETA.new_zeros(())
    values = {"model.2.weight": THETA.unsqueeze(0), "model.2.bias": zero.reshape(1), SHARE: zero}
    values |= {"adapters.lslr.rate.model.2.weight": THETA.new_tensor(rates)} if rates else {}
    grads = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    return grads["model.2.weight"].flatten(), grads


def test_f1() -> None:
    close(f1_gradient(f1(multi_step=1.0))[0], -0.1121875, -3.46)
    close(f1_gradient(f1(multi_step=0.0))[0], 0.100625, -3.0075)
    _, grads = f1_gradient(f1(multi_step=0.0, chain=Chain(lslr(2, 0.1))), (0.1, 0.1))
    close(grads["adapters.lslr.rate.model.2.weight"], 14.2625, 14.2625)


def test_all_losses_come_from_one_pass_through_the_inner_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = built(steps=4, multi_step=1.0)
    calls: list[int] = []
    support_loss = ours.support_loss

    def counted(values: Params, batch: Examples, step: int, key: Tensor) -> Any:
        calls.append(step)
        return support_loss(values, batch, step, key)

    monkeypatch.setattr(ours, "support_loss", counted)
    ours.loss(fresh(ours), task(), KEY)
    assert calls == [0, 1, 2, 3]


def test_the_loss_is_the_weighted_sum_of_the_query_losses_after_each_number_of_steps() -> None:
    adapters = {"adam": Adam(AdamOptions(lr=0.1, beta1=0.5, eps=1e-3))}
    ours = built(steps=3, multi_step=0.5, adapters=adapters, norm="support")
    values, example = at(fresh(ours), 0.2), task()

    def loss(steps: int) -> Tensor:
        fast = ours.adapt(values, example.support, steps=steps, key=KEY)
        return F.cross_entropy(ours.predict(values, fast, example.query.x, key=KEY), example.query.y)

    expected = 0.2 * loss(1) + 0.2 * loss(2) + 0.6 * loss(3)
    torch.testing.assert_close(ours.loss(values, example, KEY)[0], expected, rtol=1e-12, atol=1e-12)


# Scale and shift of each step.


@pytest.mark.parametrize("adapt", ["weights", "all"])
def test_each_inner_step_has_its_scale_and_shift(adapt: str) -> None:
    ours = built(steps=3, adapt=adapt, norm="transductive", multi_step=0)
    values, example = fresh(ours), task()
    assert values["model.0.1.weight"].shape == values["model.0.1.bias"].shape == (3, 4)

    def network(theta: Params, row: int, x: Tensor) -> Tensor:
        here = {n: v[row] if n.startswith("model.0.1.") else v for n, v in theta.items()}
        hidden = F.linear(x, here["model.0.0.weight"], here["model.0.0.bias"])
        normed = F.batch_norm(hidden, None, None, here["model.0.1.weight"], here["model.0.1.bias"], training=True)
        return F.linear(normed.tanh(), here["model.2.weight"], here["model.2.bias"])

    theta = dict(values)
    for number in range(5):
        # Further steps have the last scale and shift, and queries those of the step that was taken last.
        fast = ours.adapt(values, example.support, steps=number)
        expected = network(theta, min(max(number - 1, 0), 2), example.query.x)
        torch.testing.assert_close(ours.predict(values, fast, example.query.x), expected, rtol=1e-9, atol=1e-12)

        def loss(v: Params, k: int = number) -> Tensor:
            return F.cross_entropy(network(v, min(k, 2), example.support.x), example.support.y)

        gradient = grad(loss)(theta)
        theta |= {name: theta[name] - 0.3 * gradient[name] for name in ours.adapted}


def test_layer_norm_has_a_scale_and_a_shift_of_each_step_too() -> None:
    ours = learner(MAMLPlusPlus, backbone=smooth("layer"), steps=2)
    assert fresh(ours)["model.0.1.weight"].shape == (2, 4)
    assert_loss_has_its_gradient(ours)


@pytest.mark.parametrize("norm", ["transductive", "support", "per-step"])
def test_evaluation_predicts_what_training_scores(norm: str) -> None:
    ours = built(steps=2, test_steps=2, norm=norm, adapters=lslr(2), multi_step=0.5)
    values, example = at(fresh(ours), 1.0), task()
    predicted = ours.predict(values, ours.adapt(values, example.support), example.query.x)
    loss = F.cross_entropy(predicted, example.query.y)
    torch.testing.assert_close(loss, ours.loss(values, example, KEY)[0], rtol=1e-12, atol=1e-12)


# Everything together.


def plain_loss(values: Params, example: Task, weights: Tensor) -> Tensor:
    """Return the loss of MAML++ with all parts in plain PyTorch: three steps on all but scale and shift."""
    adapted = [n for n in values if n.startswith("model.") and not n.startswith("model.0.1.")]
    theta, loss = {n: values[n] for n in adapted}, torch.zeros((), dtype=torch.float64)

    def network(theta: Params, k: int, part: Examples) -> Tensor:
        hidden = part.x @ theta["model.0.0.weight"].T + theta["model.0.0.bias"]
        z = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
        hidden = (values["model.0.1.weight"][k] * z + values["model.0.1.bias"][k]).tanh()
        return F.cross_entropy(hidden @ theta["model.2.weight"].T + theta["model.2.bias"], part.y)

    for k in range(3):
        gradient = torch.autograd.grad(
            network(theta, k, example.support), [theta[n] for n in adapted], create_graph=True
        )
        rates = [values[f"adapters.lslr.rate.{n}"][k] for n in adapted]
        theta = {n: theta[n] - rate * g for n, rate, g in zip(adapted, rates, gradient, strict=True)}
        loss = loss + weights[k] * network(theta, k, example.query)
    return loss


def test_the_meta_gradient_is_that_of_plain_autograd() -> None:
    ours = built(steps=3, adapters=lslr(3), multi_step=0.5)
    params, state = split_state(at(fresh(ours), 0.2))
    found = step(ours, params | state, tasks(1))
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    loss = plain_loss(leaves, task(), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64))
    torch.testing.assert_close(found.losses[0], loss.detach(), rtol=1e-10, atol=1e-12)
    expected = torch.autograd.grad(loss, list(leaves.values()))
    for name, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(found.grads[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("adjoint", ["unroll", "recompute"])
@pytest.mark.parametrize("adapt", ["weights", "all"])
@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str, adapt: str, adjoint: str) -> None:
    adapters = lslr(3) if adapt == "weights" else {"adam": Adam(AdamOptions(lr=0.1, eps=1e-2))}
    assert_loss_has_its_gradient(built(steps=3, norm=norm, adapt=adapt, adjoint=adjoint, adapters=adapters))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", POLICIES)
def test_every_plan_gives_the_same_in_every_phase(norm: str, share: float) -> None:
    ours = built(steps=3, norm=norm, adapters=lslr(2), multi_step=0.8, first_order=0.3)
    values, batch, phase = at(fresh(ours), share), tasks(4), ours.during(share)
    looped = step(phase, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(phase, values, batch, plan), looped)
        assert_equal_steps(step(phase, values, batch, plan, chunk=3), looped)
    assert set(looped.metrics) == {"score"}
