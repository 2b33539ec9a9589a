"""Every plan and chunk size gives the same meta-gradient, and evaluation changes nothing."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine_toys import (
    CONVOLUTIONS,
    Flipped,
    Inequality,
    Shrinkage,
    Viewed,
    image_learner,
    images,
    maml,
    pooling,
    task_losses,
    wide,
)
from memory import added_peak
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION, INTERACTION, MULTI_LABEL, REGRESSION
from metaforge.authoring.protocols import Examples, Learner, Options, Params, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import meta_gradients, prepare_tasks, score_tasks
from metaforge.engine.local_batch import LocalBatch
from metaforge.errors import ContractError
from metaforge_plugins.learners.amortised.cnp import CNP
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_true_gradient,
    fresh,
    keys,
    learner,
    sgd,
    smooth,
    step,
    task,
    tasks,
)


@pytest.mark.parametrize("norm", POLICIES)
def test_every_plan_gives_the_exact_second_order_gradient_through_norm_scales(norm: str) -> None:
    built = maml(norm)
    values, batch = fresh(built), tasks(3)
    looped = step(built, values, batch)
    params = split_state(values)[0]
    losses = task_losses(built, values, batch)
    assert_true_gradient(lambda p: losses(p).mean(), params, looped.grads)
    # `fold` is grad(vmap), the order in which PyTorch's fused norms give wrong second derivatives.
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 9])
def test_every_chunk_size_gives_the_same_step(plan: str, chunk: int) -> None:
    built = learner(ProtoNet, backbone=smooth("batch"))
    values, batch = fresh(built), tasks(5)
    whole = step(built, values, batch, "loop")
    assert_equal_steps(step(built, values, batch, plan, chunk=chunk), whole)
    assert whole.losses.shape == (5,)
    assert set(whole.state) == {"state.model.1.mean", "state.model.1.var"}


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_terms_of_regularizers_are_part_of_the_outer_loss(plan: str, chunk: int | None) -> None:
    built = maml()
    values, batch = fresh(built), tasks(3)
    terms = (Inequality(Options()), Shrinkage(Options()))
    losses = task_losses(built, values, batch)

    def total(params: Params) -> Tensor:
        each = losses(params)
        return each.mean() + each.var(unbiased=False) + 0.5 * params["model.0.0.weight"].square().sum()

    result = step(built, values, batch, plan, chunk=chunk, regularizers=terms)
    exact = torch.func.grad(total)(split_state(values)[0])
    for name, gradient in exact.items():
        torch.testing.assert_close(result.grads[name], gradient, rtol=1e-9, atol=1e-9)
    if plan == "loop" and chunk is None:
        assert_true_gradient(total, split_state(values)[0], result.grads)


def test_a_penalty_adds_its_gradient_and_a_regularizer_without_terms_adds_nothing() -> None:
    built = maml()
    values, batch = fresh(built), tasks(2)
    plain = step(built, values, batch)
    shrunk = step(built, values, batch, regularizers=(Shrinkage(Options()),))
    difference = shrunk.grads["model.0.0.weight"] - plain.grads["model.0.0.weight"]
    torch.testing.assert_close(difference, values["model.0.0.weight"])
    torch.testing.assert_close(shrunk.grads["model.0.0.bias"], plain.grads["model.0.0.bias"], rtol=0, atol=0)

    class Idle(Shrinkage):
        def penalty(self, values: Params) -> None:  # type: ignore[override]
            return None

    assert_equal_steps(step(built, values, batch, regularizers=(Idle(Options()),)), plain, 0.0)


def test_a_penalty_that_is_no_scalar_is_named_with_its_regularizer() -> None:
    class Vector(Shrinkage):
        def penalty(self, values: Params) -> Tensor:
            return values["model.0.0.bias"]

    built, regularizer = maml(), Vector(Options())
    with pytest.raises(ContractError, match=r"penalty returns .* shape \[4\], not a scalar") as caught:
        step(built, fresh(built), tasks(2), regularizers=(regularizer,))
    assert caught.value.owner is regularizer


def test_state_entries_get_no_gradient() -> None:
    built = maml("running")
    values = {name: value.requires_grad_() for name, value in fresh(built).items()}
    result = step(built, values, tasks(2))
    assert not any(name.startswith("state.") for name in result.grads)
    assert all(name.startswith("state.") for name in result.state)


def test_the_state_of_several_tasks_is_averaged() -> None:
    built = learner(ProtoNet, backbone=smooth("batch"), norm="running")
    values, batch = fresh(built), tasks(3)
    singles = [step(built, values, tree_map(lambda t, i=i: t[i : i + 1], batch)) for i in range(3)]
    whole = step(built, values, batch, "fold", chunk=2)
    for name, change in whole.state.items():
        torch.testing.assert_close(change, torch.stack([one.state[name] for one in singles]).mean(0))


def test_prepare_scales_bytes_and_keeps_labels() -> None:
    pixels = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    batch = Task(Examples(pixels, torch.tensor([1])), Examples(torch.ones(1, 3), torch.ones(1, 1)))
    ready = prepare_tasks(batch, torch.device("cpu"), torch.float64)
    assert ready.support.x.tolist() == [[0.0, 0.2, 1.0]]
    assert ready.support.x.dtype == ready.query.x.dtype == ready.query.y.dtype == torch.float64
    assert ready.support.y.dtype == torch.int64
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("plan", ["loop", "vmap"])
@pytest.mark.parametrize("norm", POLICIES)
def test_evaluation_changes_nothing_and_its_plans_agree(norm: str, plan: str) -> None:
    built = maml(norm)
    values, batch = fresh(built), tasks(4)
    before, generator = {n: v.clone() for n, v in values.items()}, torch.random.get_rng_state()
    result = score_tasks(built, values, batch, kind=CLASSIFICATION, plan=plan)  # type: ignore[arg-type]
    assert result.scores.shape == (4,)
    assert result.predictions.shape == (4, 9, 3)
    assert not result.predictions.requires_grad
    assert values.keys() == before.keys()
    assert all(torch.equal(value, values[name]) for name, value in before.items())
    assert torch.equal(generator, torch.random.get_rng_state())
    again = score_tasks(built, values, batch, kind=CLASSIFICATION, plan="loop")
    torch.testing.assert_close(result.predictions, again.predictions, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.scores, (result.predictions.argmax(-1) == batch.query.y).double().mean(-1))


class Gambler(Learner):
    """Returns the support and query parameters plus noise, which it draws from the keys of an evaluation."""

    Config = Options

    def __init__(self) -> None:
        pass

    def init(self, key: Tensor) -> Params:
        return {"w": torch.ones(1)}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Any = None) -> Any:
        return support.x.mean() if key is None else support.x.mean() + normal(key, ())

    def predict(self, values: Params, fast: Any, x: Tensor, *, key: Any = None) -> Tensor:
        return x + fast if key is None else x + fast + normal(key, x.shape)

    def loss(self, values: Params, task: Task, key: Tensor) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("plan", ["loop", "vmap"])
def test_only_a_kind_that_needs_a_key_gets_one_in_evaluation(plan: Any) -> None:
    worlds = Task(*(Examples(torch.ones(3, n, 1), torch.zeros(3, n, 1)) for n in (2, 4)))
    plain = score_tasks(Gambler(), {}, worlds, keys(3), kind=REGRESSION, plan=plan)
    assert torch.equal(plain.predictions, torch.full((3, 4, 1), 2.0))
    noisy, again = (score_tasks(Gambler(), {}, worlds, keys(3), kind=INTERACTION, plan=plan) for _ in range(2))
    assert torch.equal(noisy.predictions, again.predictions)
    assert len(noisy.predictions.unique()) == 12
    torch.testing.assert_close(noisy.scores, noisy.predictions.mean((1, 2)))
    # Adaptation and prediction draw from two keys.
    adapted, predicted = fold_in(keys(3)[0], "adapt"), fold_in(keys(3)[0], "predict")
    expected = 2 + normal(adapted, ()) + normal(predicted, (4, 1))
    torch.testing.assert_close(noisy.predictions[0], expected)
    with pytest.raises(ValueError, match="interaction tasks needs keys"):
        score_tasks(Gambler(), {}, worlds, kind=INTERACTION)


def test_targets_of_floats_are_scored_by_their_kind() -> None:
    built = learner(MAML, kind="multi-label")
    values, batch = fresh(built), tasks(3, "multi-label")
    scored = score_tasks(built, values, batch, kind=MULTI_LABEL)
    torch.testing.assert_close(scored.scores, ((scored.predictions > 0) == (batch.query.y > 0)).double().mean((1, 2)))


def test_evaluation_takes_a_number_of_steps_and_the_learner_s_own_metrics() -> None:
    built = maml()
    values, batch = fresh(built), tasks(2)
    zero, three = (score_tasks(built, values, batch, kind=CLASSIFICATION, steps=n).predictions for n in (0, 3))
    assert not torch.allclose(zero, three)
    torch.testing.assert_close(zero[0], built.predict(values, {}, batch.query.x[0]))
    process = learner(CNP, kind="regression")
    measured = fresh(process)
    waves = tasks(2, "regression")
    assert score_tasks(process, measured, waves, keys(2), kind=REGRESSION).measures == {}
    for plan in ("loop", "vmap"):
        result = score_tasks(process, measured, waves, keys(2), kind=REGRESSION, plan=plan, measure=True)  # type: ignore[arg-type]
        assert result.measures["log_likelihood"].shape == (2,)
        torch.testing.assert_close(result.scores, (result.predictions - waves.query.y).square().mean((1, 2)))


def test_the_loss_of_a_task_in_a_batch_is_that_of_the_task_alone() -> None:
    built = maml()
    values = fresh(built)
    alone = built.loss(values, task(1), keys(2)[1])[0]
    torch.testing.assert_close(step(built, values, tasks(2)).losses[1], alone)
    with pytest.raises(KeyError):
        meta_gradients(built, {"model.0.0.weight": torch.ones(1)}, tasks(1), make_key(0).unsqueeze(0))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_plan_gives_the_exact_gradient_on_convolutions(name: str) -> None:
    built = image_learner(CONVOLUTIONS[name])
    values, batch = fresh(built), images(3)
    looped = step(built, values, batch)
    assert_true_gradient(lambda p: task_losses(built, values, batch)(p).mean(), split_state(values)[0], looped.grads)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)


# Max pooling has kinks, at which finite differences are wrong: the reference is plan `loop`, with torch's own layers.
@pytest.mark.parametrize("cls", [MAML, ProtoNet])
@pytest.mark.parametrize("backbone", [pooling, Viewed, Flipped, wide])
def test_every_plan_agrees_on_a_network_that_pools(backbone: Any, cls: Any) -> None:
    built = image_learner(backbone, cls)
    values, batch = fresh(built), images(3)
    looped = step(built, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(built, values, batch, plan), looped)
    one, two = (score_tasks(built, values, batch, kind=CLASSIFICATION, plan=plan) for plan in ("loop", "vmap"))
    torch.testing.assert_close(one.predictions, two.predictions, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", [CONVOLUTIONS["dropout"], pooling])
@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_recomputed_inner_steps_give_the_same_gradient(plan: str, backbone: Any) -> None:
    kept, again = (image_learner(backbone, norm="per-step", adjoint=adjoint) for adjoint in ("unroll", "recompute"))
    values, batch = fresh(kept), images(3)
    assert_equal_steps(step(again, values, batch, plan), step(kept, values, batch, plan), 1e-12)


def peak(
    cls: type[Any],
    steps: int,
    *,
    adapt_only: bool = False,
    plan: str = "fold",
    count: int = 2,
    chunk: int | None = 2,
    **options: Any,
) -> int:
    """Return the peak of additional tensor memory in bytes, for a meta-gradient or for an evaluation."""
    parts = Parts(TaskSpec("classification", (2, 6, 6), 3, TaskShape(3, 1, 2)), CONVOLUTIONS["batch norm"], sgd(0.2))
    built = cls(cls.Config(steps=steps, test_steps=steps, **options), parts)
    values, batch = fresh(built), images(count)
    if adapt_only:
        return added_peak(lambda: score_tasks(built, values, batch, kind=CLASSIFICATION, plan="vmap"))
    return added_peak(lambda: step(built, values, batch, plan, chunk=chunk))


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_memory_hardly_grows_with_recomputed_inner_steps_under_any_plan(plan: str) -> None:
    batch = tasks(2, shots=60)
    peaks = []
    for steps in (5, 50):
        built = learner(MAML, backbone=smooth("batch"), steps=steps, adjoint="recompute")
        peaks.append(added_peak(lambda built=built: step(built, fresh(built), batch, plan, chunk=2)))  # type: ignore[misc]
    assert peaks[1] < 1.5 * peaks[0]


def test_a_loop_needs_the_memory_of_one_task() -> None:
    assert peak(MAML, 4, plan="loop", count=8, chunk=None) < 1.2 * peak(MAML, 4, plan="loop", count=1)


def test_memory_grows_only_with_what_the_gradient_needs() -> None:
    # Second order keeps the activations of every inner step; recomputed steps keep only the weights of each.
    assert peak(MAML, 20) > 3 * peak(MAML, 4)
    assert peak(MAML, 20, adjoint="recompute") < 0.4 * peak(MAML, 20)
    # No graph of the inner steps is built for first order, nor in evaluation.
    assert peak(FOMAML, 20) < 1.1 * peak(FOMAML, 4)
    assert peak(MAML, 20, adapt_only=True) < 1.1 * peak(MAML, 4, adapt_only=True)
    # The chunk size bounds the memory of a batch.
    assert peak(MAML, 4, count=16) < 1.5 * peak(MAML, 4, count=2)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the size of the process in /proc")
def test_memory_is_constant_over_two_thousand_steps_and_evaluations() -> None:
    built = learner(MAML, backbone=smooth())
    values, batch, sizes = fresh(built), tasks(1), []
    for number in range(2000):
        step(built, values, batch, "fold")
        score_tasks(built, values, batch, kind=CLASSIFICATION, plan="vmap")
        if number in (200, 1999):
            gc.collect()
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]))
    assert sizes[1] < 1.01 * sizes[0]


@pytest.mark.parametrize("regularizers", [(), (Inequality(Options()),)])
@pytest.mark.parametrize("groups", [(5,), (2, 3), (1, 1, 3)])
def test_the_groups_of_a_batch_add_up_to_the_whole(
    groups: tuple[int, ...], regularizers: tuple[Inequality, ...]
) -> None:
    built = maml("running")
    values, batch = fresh(built), tasks(5)
    whole = step(built, values, batch, "fold", regularizers=regularizers)
    local = LocalBatch(5, groups)
    assert_equal_steps(step(built, values, batch, "fold", chunk=2, regularizers=regularizers, local=local), whole)


FROZEN = ["model.0.*"]


def frozen_maml(norm: str = "running") -> Any:
    return learner(MAML, backbone=smooth("batch"), steps=2, norm=norm, adapt="all", frozen=FROZEN)


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
@pytest.mark.parametrize("norm", ["transductive", "running"])
def test_with_frozen_values_the_gradient_is_that_of_autograd(norm: str, plan: str) -> None:
    built = frozen_maml(norm)
    values, batch = fresh(built), tasks(3)
    found = step(built, values, batch, plan, frozen=FROZEN)
    leaves = {name: value.clone().requires_grad_() for name, value in values.items() if name.startswith("model.2.")}
    mean = task_losses(built, values, batch)(values | leaves).mean()
    expected = dict(zip(leaves, torch.autograd.grad(mean, list(leaves.values())), strict=True))
    assert found.grads.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-9, atol=1e-12)
    assert found.state == {}


def test_nothing_frozen_is_differentiated_and_a_penalty_reaches_the_rest() -> None:
    marked: list[bool] = []

    class Seen(MAML):
        def loss(self, values: Params, task: Task, key: Tensor) -> Any:
            marked.extend(values[name].requires_grad for name in ("model.2.weight", "model.0.0.weight"))
            return super().loss(values, task, key)

    head = ["model.2.*"]
    built = learner(Seen, backbone=smooth(), steps=1, frozen=head)
    values, batch = fresh(built), tasks(1)
    plain = step(built, values, batch, frozen=head)
    assert marked == [False, True]
    shrunk = step(built, values, batch, frozen=head, regularizers=[Shrinkage(Options())])
    assert shrunk.grads.keys() == plain.grads.keys() == {"model.0.0.weight", "model.0.0.bias"}
    weight = "model.0.0.weight"
    torch.testing.assert_close(shrunk.grads[weight], plain.grads[weight] + values[weight])


def test_a_change_of_a_frozen_state_entry_is_dropped_even_if_the_learner_returns_it() -> None:
    built = maml("running")
    values, batch = fresh(built), tasks(2)
    free = step(built, values, batch)
    kept = step(built, values, batch, frozen=["state.*.mean"])
    assert {name for name in free.state if name not in kept.state} == {n for n in free.state if n.endswith(".mean")}
    assert kept.grads.keys() == free.grads.keys()
