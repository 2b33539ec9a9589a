"""The gradient of an outer loss that combines the losses and terms of all tasks, however the batch is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine_toys import Inequality, Shrinkage, Theil, Uncertain, maml
from metaforge.authoring.functional import add_params, one_task, split_state
from metaforge.authoring.protocols import Aux, Key, Options, Params, Regularizer, Task
from metaforge.engine.batch import MetaStep, meta_gradients
from metaforge.engine.chunks import ByTask
from metaforge.engine.combining import combined_weights, gradients_to_compile, terms_read
from metaforge.engine.compiler import Compiler
from metaforge.engine.local_batch import LocalBatch, sum_groups
from metaforge.errors import ContractError
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from toys import assert_equal_steps, assert_true_gradient, fresh, keys, learner, smooth, step, tasks

PLANS = ("loop", "vmap", "fold")
SETS = [(Theil,), (Uncertain,), (Theil, Inequality, Uncertain, Shrinkage)]


def built(classes: tuple[type[Any], ...], norm: str = "transductive") -> tuple[Any, tuple[Regularizer, ...]]:
    """Return MAML with regularizers, and the regularizers."""
    regularizers = {cls.__name__: cls(Options()) for cls in classes}
    return maml(norm, regularizers=regularizers), tuple(regularizers.values())


def joint(one: Any, regularizers: tuple[Regularizer, ...], values: Params, batch: Task) -> Callable[[Params], Tensor]:
    """Return the outer loss as a function of the parameters, computed in a plain loop over the tasks."""
    state, count = split_state(values)[1], len(batch.support.x)

    def outer_loss(params: Params) -> Tensor:
        pairs = [one.loss(params | state, one_task(batch, i), key) for i, key in enumerate(keys(count))]
        losses = torch.stack([loss for loss, _ in pairs])
        total = losses.mean()
        for regularizer in regularizers:
            terms = {name: torch.stack([aux.terms[name] for _, aux in pairs]) for name in regularizer.terms}
            for added in (regularizer.combine(losses, terms), regularizer.penalty(params | state)):
                total = total if added is None else total + added
        return total

    return outer_loss


@pytest.mark.parametrize("classes", SETS, ids=lambda classes: "+".join(cls.__name__ for cls in classes))
@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_the_gradient_is_that_of_all_tasks_jointly_by_every_plan(classes: tuple[type[Any], ...], norm: str) -> None:
    one, regularizers = built(classes, norm)
    values, batch = fresh(one), tasks(4)
    outer_loss, params = joint(one, regularizers, values, batch), split_state(values)[0]
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    expected = dict(zip(leaves, torch.autograd.grad(outer_loss(leaves), list(leaves.values())), strict=True))
    looped = step(one, values, batch, regularizers=regularizers)
    assert_true_gradient(outer_loss, params, looped.grads)
    for name, gradient in expected.items():
        torch.testing.assert_close(looped.grads[name], gradient, rtol=1e-9, atol=1e-11)
    for plan in PLANS[1:]:
        for chunk in (None, 1, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk, regularizers=regularizers), looped)


@pytest.mark.parametrize("plan", PLANS)
def test_first_order_gradients_are_those_of_the_loop(plan: str) -> None:
    regularizers = {"theil": Theil(Options()), "uncertain": Uncertain(Options())}
    one = learner(FOMAML, backbone=smooth("batch"), steps=2, regularizers=regularizers)
    values, batch = fresh(one), tasks(3)
    outer_loss, params = joint(one, tuple(regularizers.values()), values, batch), split_state(values)[0]
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    expected = torch.autograd.grad(outer_loss(leaves), list(leaves.values()))
    found = step(one, values, batch, plan, regularizers=tuple(regularizers.values()))
    for gradient, name in zip(expected, leaves, strict=True):
        torch.testing.assert_close(found.grads[name], gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("groups", [(5,), (2, 3), (1, 1, 3)])
def test_the_groups_of_a_batch_add_up_to_the_whole(groups: tuple[int, ...], plan: str) -> None:
    one, regularizers = built(SETS[-1], "running")
    values, batch = fresh(one), tasks(5)
    whole = step(one, values, batch, plan, regularizers=regularizers)
    local = LocalBatch(5, groups)
    assert_equal_steps(step(one, values, batch, plan, chunk=2, regularizers=regularizers, local=local), whole)


@pytest.mark.parametrize("plan", PLANS)
def test_two_ranks_compute_the_gradient_of_the_whole_batch(plan: str) -> None:
    one, regularizers = built((Theil, Inequality, Uncertain))
    values, batch = fresh(one), tasks(5)
    seen: list[Tensor] = []

    def watched(groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
        seen.append(rows)
        return sum_groups(groups, rows)

    whole = meta_gradients(
        one, values, batch, keys(5), plan=plan, regularizers=regularizers, local=LocalBatch(5, (5,), 0, watched)
    )
    assert all(rows.shape == (5, 1 + len(whole.metrics) + 3) for rows in seen)

    def rank(first: int, count: int) -> MetaStep:
        """Return the step of a rank that gets the rows of all tasks from the others, and adds no other group."""

        def reduce(groups: list[Params], rows: Tensor) -> tuple[Params, Tensor]:
            torch.testing.assert_close(rows, seen[0][first : first + count], rtol=1e-12, atol=1e-12)
            return sum_groups(groups, rows)[0], seen[0]

        own = tree_map(lambda t: t[first : first + count], batch)
        local = LocalBatch(5, (count,), first, reduce)
        return meta_gradients(
            one, values, own, keys(5)[first : first + count], plan=plan, regularizers=regularizers, local=local
        )

    parts = [rank(0, 2), rank(2, 3)]
    total = add_params(parts[0].grads, parts[1].grads)
    assert total.keys() == whole.grads.keys()
    for name, gradient in whole.grads.items():
        torch.testing.assert_close(total[name], gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("plan", PLANS)
def test_a_term_that_the_learner_does_not_give_is_named(plan: str) -> None:
    one = maml()
    with pytest.raises(ContractError, match=r"Aux\.terms lacks 'loss_before', which a regularizer reads"):
        step(one, fresh(one), tasks(2), plan, regularizers=(Theil(Options()),))


@pytest.mark.parametrize("plan", PLANS)
def test_a_constant_term_has_no_gradient(plan: str) -> None:
    class Constant(type(maml())):  # type: ignore[misc]
        """Gives a term that depends on no parameter."""

        def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
            loss, aux = super().loss(values, task, key)
            return loss, aux._replace(terms={"loss_before": torch.full_like(loss, 2.0) + task.query.x.mean()})

    one = learner(Constant, backbone=smooth(), steps=1)
    values, batch = fresh(one), tasks(3)
    plain = step(one, values, batch, plan)
    assert_equal_steps(step(one, values, batch, plan, regularizers=(Theil(Options()),)), plain, 1e-12)


@pytest.mark.parametrize("plan", PLANS)
def test_without_a_regularizer_that_combines_a_step_is_the_same_to_the_bit(plan: str) -> None:
    plain, asked = maml(), built((Uncertain,))[0]
    values, batch = fresh(plain), tasks(3)
    assert_equal_steps(step(asked, values, batch, plan), step(plain, values, batch, plan), 0.0)


def test_the_weights_are_the_derivatives_with_respect_to_losses_and_terms() -> None:
    losses, before = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    weights = combined_weights(ByTask(losses, {"loss_before": before}), (Inequality(Options()), Theil(Options())))
    # The derivative of the mean is 1/2 for each loss, and that of their variance -1 and 1.
    torch.testing.assert_close(weights.losses, torch.tensor([-0.5, 1.5]))
    torch.testing.assert_close(weights.terms["loss_before"], torch.zeros(2))
    assert combined_weights(ByTask(losses), (Inequality(Options()),)).terms == {}


def test_the_terms_of_several_regularizers_are_computed_once_in_a_fixed_order() -> None:
    regularizers = (Uncertain(Options()), Theil(Options()), Uncertain(Options()))
    assert terms_read(regularizers) == ("entropy_after", "entropy_before", "loss_before")
    assert terms_read((Inequality(Options()),)) == ()


@pytest.mark.parametrize(
    ("result", "found"), [(lambda losses: 2 * losses, r"shape \[2\]"), (lambda losses: 3.0, "an object of type float")]
)
def test_a_term_that_is_no_scalar_is_named_with_its_regularizer(result: Callable[[Tensor], Any], found: str) -> None:
    class Vector(Theil):
        terms = frozenset()

        def combine(self, losses: Tensor, terms: Params) -> Any:
            return result(losses)

    regularizer = Vector(Options())
    one = maml()
    with pytest.raises(ContractError, match=f"combine returns .*{found}, not a scalar") as caught:
        step(one, fresh(one), tasks(2), regularizers=(regularizer,))
    assert caught.value.owner is regularizer


@pytest.mark.parametrize("classes", SETS, ids=lambda classes: "+".join(cls.__name__ for cls in classes))
@pytest.mark.parametrize("plan", ["vmap", "fold"])
def test_what_is_compiled_computes_the_weights_itself(classes: tuple[type[Any], ...], plan: Any) -> None:
    one, regularizers = built(classes)
    values, batch = fresh(one), tasks(4)
    expected = step(one, values, batch, regularizers=regularizers)
    whole = gradients_to_compile(one, plan, regularizers, 4)
    assert_equal_steps(step(one, values, batch, plan, regularizers=regularizers, compiled=whole), expected)
    with pytest.raises(ValueError, match="one chunk of all tasks"):
        step(one, values, batch, plan, chunk=2, regularizers=regularizers, compiled=whole)


def test_a_compiled_step_gives_the_same_gradients() -> None:
    regularizers = (Theil(Options()), Uncertain(Options()))
    by_name = {"theil": regularizers[0], "uncertain": regularizers[1]}
    one = learner(FOMAML, steps=1, backbone=smooth(units=2), regularizers=by_name)
    values, batch = fresh(one), tasks(3)
    compiled = Compiler(gradients_to_compile(one, "fold", regularizers, 3))
    expected = step(one, values, batch, regularizers=regularizers)
    assert_equal_steps(step(one, values, batch, "fold", regularizers=regularizers, compiled=compiled), expected)
