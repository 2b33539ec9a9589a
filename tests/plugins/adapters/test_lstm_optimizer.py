"""The LSTM optimizer: its limits are plain descent and no step, and its gates have the meta-gradient of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.functional import select, split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import InnerStep, Params
from metaforge_plugins.adapters.lstm_optimizer import LSTMOptimizer
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from toys import assert_equal_steps, assert_true_gradient, fresh, inner_step, learner, smooth, step, task, tasks

KEY = make_key(0)
PREFIX = "adapters.lstm-optimizer"
PARAMS = {"a": torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3), "b": torch.tensor([0.5, -0.25]).double()}
GRADS = {"a": PARAMS["a"].sin(), "b": PARAMS["b"].cos()}


def optimizer(**options: Any) -> LSTMOptimizer:
    """Return the adapter, with a small LSTM."""
    return LSTMOptimizer(LSTMOptimizer.Config(**{"hidden": 3, **options}))


def built(cls: type[Any], **options: Any) -> Any:
    """Return a learner with the adapter."""
    return learner(cls, adapters={"lstm-optimizer": optimizer()}, **options)


def lively(one: Any) -> Params:
    """Return values whose LSTM is not close to zero, so that all of its entries have an effect."""
    values = fresh(one)
    draw = torch.Generator().manual_seed(4)
    for name in [name for name in values if name.startswith(PREFIX)]:
        wide = 0.5 * torch.randn(values[name].shape, generator=draw, dtype=torch.float64)
        values[name] = wide + {"forget.bias": 2.0, "input.bias": -1.0}.get(name.removeprefix(f"{PREFIX}."), 0.0)
    return values


def gated(values: Params, forget: float, rate: float) -> Params:
    """Return values in which both gates have these constant inputs."""
    constant = {name: torch.zeros_like(value) for name, value in values.items() if name.startswith(PREFIX)}
    biases = {"forget.bias": forget, "input.bias": rate}
    return values | constant | {f"{PREFIX}.{n}": torch.tensor(x, dtype=torch.float64) for n, x in biases.items()}


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_without_forgetting_and_with_a_constant_rate_it_is_plain_descent_to_the_bit(cls: type[Any]) -> None:
    ours, theirs = built(cls, steps=3), learner(cls, adapters={"sgd": SGD(SGDOptions(lr=0.5))}, steps=3)
    values, batch = fresh(theirs), tasks(2)
    found, expected = step(ours, gated(fresh(ours) | values, 1000.0, 0.0), batch), step(theirs, values, batch)
    assert torch.equal(found.losses, expected.losses)
    for name, grad in expected.grads.items():
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-12, atol=1e-15)
    fast = [one.adapt(gated(fresh(ours) | values, 1000.0, 0.0), task().support, steps=3) for one in (ours, theirs)]
    assert all(torch.equal(fast[0][name], fast[1][name]) for name in theirs.adapted)


def test_without_forgetting_and_input_the_weights_stay() -> None:
    one = built(FOMAML, steps=3)
    values = gated(fresh(one), 1000.0, -1000.0)
    fast = one.adapt(values, task().support, steps=3)
    assert all(torch.equal(fast[name], values[name]) for name in one.adapted)


def test_the_initial_gates_shrink_weights_a_little_and_step_a_little() -> None:
    adapter = optimizer(forget_bias=(4.5, 4.5), input_bias=(-4.5, -4.5))
    meta = {name: value if "bias" in name else 0 * value for name, value in adapter.init(PARAMS, KEY).items()}
    state, params = adapter.start(meta, PARAMS), PARAMS
    for number in range(12):
        updates, state = adapter.update(meta, {n: 0 * g for n, g in GRADS.items()}, state, params, inner_step(number))
        params = {name: value - updates[name] for name, value in params.items()}
    torch.testing.assert_close(params["a"] / PARAMS["a"], torch.full((2, 3), 0.876).double(), rtol=1e-3, atol=0)
    assert float(state["input"][0]) == pytest.approx(0.011, rel=1e-2)


def test_initial_values_are_drawn_from_the_ranges_of_the_paper() -> None:
    adapter = LSTMOptimizer(LSTMOptimizer.Config())
    meta = adapter.init(PARAMS, KEY)
    assert {name: tuple(value.shape) for name, value in meta.items()} == {
        "lstm.weight": (80, 24), "lstm.bias": (80,), "forget.weight": (22,), "input.weight": (22,),
        "forget.bias": (), "input.bias": (),
    }  # fmt: skip
    for name in ("lstm.weight", "lstm.bias", "forget.weight", "input.weight"):
        assert 0.005 < meta[name].abs().max() <= 0.01
    assert 4 <= meta["forget.bias"] < 5
    assert -5 <= meta["input.bias"] < -4
    assert not torch.equal(adapter.init(PARAMS, make_key(1))["forget.bias"], meta["forget.bias"])


def test_coordinates_can_be_permuted() -> None:
    adapter = optimizer()
    meta = select(lively(built(FOMAML)), PREFIX)
    order = torch.tensor([3, 1, 5, 0, 2, 4])

    def after(params: Tensor, grads: Tensor) -> Tensor:
        state = adapter.start(meta, {"w": params})
        for number in range(3):
            updates, state = adapter.update(meta, {"w": grads}, state, {"w": params}, inner_step(number))
            params, grads = params - updates["w"], grads.cos()
        return params

    plain = after(PARAMS["a"].flatten(), GRADS["a"].flatten())
    assert len(plain.unique()) == 6
    torch.testing.assert_close(after(PARAMS["a"].flatten()[order], GRADS["a"].flatten()[order]), plain[order])


def test_the_meta_gradient_is_that_of_central_differences_with_constant_gradients() -> None:
    one = built(FOMAML, steps=3)
    values, example = lively(one), task()
    params, _ = split_state(values)
    found = torch.func.grad(lambda v: one.loss(v, example, KEY)[0])(params)
    history = []
    for steps in range(3):
        fast = one.adapt(values, example.support, steps=steps)

        def loss(p: Params) -> Tensor:
            return F.cross_entropy(one.model(values | p, example.support.x), example.support.y)

        history.append(torch.func.grad_and_value(loss)({name: fast[name] for name in one.adapted}))

    def with_constant_gradients(moved: Params) -> Tensor:
        fast, meta, adapter = {name: moved[name] for name in one.adapted}, select(moved, PREFIX), optimizer()
        state = adapter.start(meta, fast)
        for number, (grads, loss) in enumerate(history):
            updates, state = adapter.update(meta, grads, state, fast, inner_step(number, float(loss)))
            fast = {name: value - updates[name] for name, value in fast.items()}
        return F.cross_entropy(one.model(moved | fast, example.query.x), example.query.y)

    assert_true_gradient(with_constant_gradients, params, found, directions=5)


@pytest.mark.parametrize("cls", [MAML, FOMAML])
def test_every_plan_gives_the_same(cls: type[Any]) -> None:
    one = built(cls, backbone=smooth("batch"), steps=2, adapt="all", norm="support")
    values, batch = lively(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        for chunk in (None, 3):
            assert_equal_steps(step(one, values, batch, plan, chunk=chunk), looped)
    recomputed = step(built(MAML, backbone=smooth("batch"), steps=2, adapt="all", norm="support", adjoint="recompute"),
                      values, batch)  # fmt: skip
    if cls is MAML:
        assert_equal_steps(recomputed, looped)


def test_products_in_bfloat16_leave_the_state_in_float32() -> None:
    adapter = optimizer()
    params, grads = ({name: value.float() for name, value in part.items()} for part in (PARAMS, GRADS))
    meta = adapter.init(params, KEY)
    state, at = adapter.start(meta, params), InnerStep(0, torch.tensor(1.0))
    with torch.autocast("cpu", torch.bfloat16):
        updates, new = adapter.update(meta, grads, state, params, at)
    assert {v.dtype for v in (*meta.values(), *updates.values(), *new.values())} == {torch.float32}
    for before, after in ((params, updates), (state, new)):
        assert {n: v.shape for n, v in before.items()} == {n: v.shape for n, v in after.items()}
