"""What learners with an inner loop share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.inner_loop import Chain, InnerLoopLearner, InnerLoopOptions, descend
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.protocols import Key, Options, Params, Pass, Regularizer, Task
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.reptile import Reptile
from toys import POLICIES, THETA, A, B, assert_true_gradient, close, fresh, learner, quadratic, sgd, smooth, task

LEARNERS = (MAML, FOMAML, Reptile)


def built(cls: type[Any] = MAML, **options: Any) -> Any:
    """Return a learner on a network with batch norm."""
    return learner(cls, backbone=smooth("batch"), **({"steps": 2} | options))


@pytest.mark.parametrize("cls", LEARNERS)
def test_zero_steps_leave_the_weights_as_they_are(cls: type[Any]) -> None:
    one = built(cls)
    values = fresh(one)
    fast = one.adapt(values, task().support, steps=0)
    assert all(torch.equal(values[name], value) for name, value in fast.items())
    rated = learner(cls, backbone=smooth("batch"), adapters={"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.0))})
    values = rated.init(make_key(0)) | {}
    values = {name: value.double() for name, value in values.items()}
    assert all(torch.equal(values[name], value) for name, value in rated.adapt(values, task().support).items())


def test_what_is_adapted_follows_the_option() -> None:
    weights, everything = built(adapt="weights"), built(adapt="all")
    norm = {"model.0.1.weight", "model.0.1.bias"}
    assert set(everything.adapted) - set(weights.adapted) == norm
    values = fresh(weights)
    assert not norm & set(weights.adapt(values, task().support))
    moved = weights.adapt(values, task().support)
    assert not torch.equal(values["model.0.0.weight"], moved["model.0.0.weight"])


def test_numbers_of_steps() -> None:
    one = built(steps=1, test_steps=4)
    values, support, key = fresh(one), task().support, make_key(0)
    assert one.steps == 4
    for given, steps in (({}, 4), ({"key": key}, 1), ({"steps": 2}, 2)):
        ours, wanted = one.adapt(values, support, **given), one.adapt(values, support, steps=steps)
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("cls", LEARNERS)
@pytest.mark.parametrize("norm", POLICIES)
def test_queries_never_influence_adaptation(cls: type[Any], norm: str) -> None:
    one = built(cls, norm=norm)
    values, example = fresh(one), task()
    fast = one.adapt(values, example.support)
    whole = one.predict(values, fast, example.query.x)
    other = torch.cat([example.query.x[:1], 5 - example.query.x[1:]])
    moved = one.predict(values, fast, other)
    # The first query is the same in both: only under `transductive` may its prediction change.
    assert torch.allclose(whole[0], moved[0], rtol=1e-12) is not one.transductive
    assert one.transductive is (norm == "transductive")
    again = one.adapt(values, example.support)
    assert all(torch.equal(fast[name], again[name]) for name in fast)


@pytest.mark.parametrize("cls", LEARNERS)
@pytest.mark.parametrize("norm", POLICIES)
def test_the_order_of_the_support_set_is_irrelevant(cls: type[Any], norm: str) -> None:
    one = built(cls, norm=norm)
    values, support = fresh(one), task().support
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    ours, shuffled = one.adapt(values, support), one.adapt(values, type(support)(support.x[order], support.y[order]))
    for name in ours:
        torch.testing.assert_close(ours[name], shuffled[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", LEARNERS)
def test_permuting_classes_and_the_heads_rows_permutes_the_logits(cls: type[Any]) -> None:
    one = built(cls)
    values, example = fresh(one), task()
    order = torch.tensor([2, 0, 1])
    relabelled = type(example.support)(example.support.x, order[example.support.y])
    turned = dict(values)
    for name in ("model.2.weight", "model.2.bias"):
        turned[name] = values[name][order.argsort()]
    plain = one.predict(values, one.adapt(values, example.support), example.query.x)
    after = one.predict(turned, one.adapt(turned, relabelled), example.query.x)
    torch.testing.assert_close(after, plain[:, order.argsort()], rtol=1e-9, atol=1e-12)


def test_queries_are_normalised_by_the_support_set_under_the_adapted_weights() -> None:
    one = built(norm="support")
    values, support = fresh(one), task().support
    fast = one.adapt(values, support)
    hidden = support.x @ fast["model.0.0.weight"].T + fast["model.0.0.bias"]
    torch.testing.assert_close(fast["state.model.0.1.mean"], hidden.mean(0))
    torch.testing.assert_close(fast["state.model.0.1.var"], hidden.var(0, unbiased=False))


def test_regression_uses_the_mean_squared_error() -> None:
    one = learner(MAML, kind="regression", steps=1)
    values, example, key = fresh(one), task(0, "regression"), make_key(0)
    prediction = one.predict(values, one.adapt(values, example.support, key=key), example.query.x)
    loss, aux = one.loss(values, example, key)
    torch.testing.assert_close(loss, F.mse_loss(prediction, example.query.y))
    torch.testing.assert_close(aux.metrics["score"], loss)


class Noise(Regularizer):
    """Adds noise that differs by draw, of a size that is meta-learned."""

    Config = Options

    def __init__(self, config: Options, draws: int = 3) -> None:
        self.count = draws

    def init(self, modules: Any, key: Key) -> Params:
        return {"size": torch.ones(())}

    def taps(self, name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Tanh)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        noise = normal(fold_in(make_key(0), at.draw), output.shape, output.dtype)
        return output + meta["size"] * noise if at.role == "support" else output

    def draws(self, key: Key | None) -> int:
        return self.count


def test_the_support_loss_is_the_mean_over_a_regularizers_draws() -> None:
    one = learner(MAML, regularizers={"noise": Noise(Options())})
    values, support = fresh(one), task().support
    assert set(select(values, "regularizers.noise")) == {"size"}
    singles = [one.model(values, support.x, Pass(None, 0, "support", draw)) for draw in range(3)]
    expected = torch.stack([F.cross_entropy(logits, support.y) for logits in singles]).mean()
    torch.testing.assert_close(one.support_loss(values, support, 0, None)[0], expected)
    gradient = torch.func.grad(lambda v: one.loss(v, task(), make_key(0))[0])(values)
    assert gradient["regularizers.noise.size"] != 0
    assert not any("regularizers" in name for name in one.adapted)


def test_options_are_checked() -> None:
    for wrong in ({"steps": -1}, {"norm": "none"}, {"stepz": 1}):
        with pytest.raises(ValidationError):
            InnerLoopOptions(**wrong)  # type: ignore[arg-type]
    assert issubclass(MAML, InnerLoopLearner)


def test_one_task_is_learned_when_support_and_query_are_one() -> None:
    one = learner(MAML, steps=1)
    values, example = fresh(one), task()
    same, losses = Task(example.support, example.support), []
    for _ in range(20):
        gradient, (loss, _) = torch.func.grad_and_value(lambda v: one.loss(v, same, make_key(0)), has_aux=True)(values)
        values = {name: value - 0.05 * gradient[name] for name, value in values.items()}
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)


class Constant(MAML):
    """Treats the inner gradients as constants."""

    first_order = True


def test_the_attribute_first_order_makes_the_inner_gradients_constants() -> None:
    exact, first = built(MAML), built(Constant)
    values, example, key = fresh(exact), task(), make_key(0)
    grads = {}
    for name, one in (("exact", exact), ("first", first)):
        loss = lambda v, one=one: one.loss(v, example, key)[0]  # noqa: E731
        grads[name] = torch.func.grad(loss)(values)
        torch.testing.assert_close(loss(values), exact.loss(values, example, key)[0])
    fast = {name: value.detach() for name, value in exact.adapt(values, example.support, key=key).items()}
    at_adapted = torch.func.grad(lambda f: exact.query_loss(values, f, example, key, {})[0])(fast)
    for name in first.adapted:
        torch.testing.assert_close(grads["first"][name], at_adapted[name])
    assert not torch.allclose(grads["exact"]["model.0.0.weight"], grads["first"]["model.0.0.weight"])


@pytest.mark.parametrize("norm", POLICIES)
def test_recomputed_steps_give_the_same_gradients(norm: str) -> None:
    stored, recomputed = (built(norm=norm, recompute=again) for again in (False, True))
    values, example, key = fresh(stored), task(), make_key(0)
    one, two = (torch.func.grad(lambda v, m=m: m.loss(v, example, key)[0])(values) for m in (stored, recomputed))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12)


Loss = Callable[[Tensor], Tensor]


def descended(
    loss: Loss, values: Params, steps: int, chain: Chain | None = None, *, first_order: bool = False, rate: float = 0.1
) -> Tensor:
    """Return `w` after inner steps on a loss that is a function of `w`."""
    objective: Callable[[Params, int], tuple[Tensor, Params]] = lambda params, step: (loss(params["w"]), {})  # noqa: E731
    fast, _ = descend(objective, values, {"w": values["w"]}, chain or sgd(rate), steps, first_order=first_order)
    return fast["w"]


def support(theta: Tensor) -> Tensor:
    """Return the support loss of fixture F1."""
    return quadratic(theta, A)


def query(theta: Tensor) -> Tensor:
    """Return the query loss of fixture F1."""
    return quadratic(theta, B)


# The inner loop on the fixtures F1 (a quadratic loss) and F1s (a loss with changing curvature).


def test_f1_trajectory() -> None:
    for steps, expected in ((1, (0.475, -0.075)), (2, (0.4875, -0.3)), (5, (0.606812, -0.657375))):
        close(descended(support, {"w": THETA}, steps), *expected)
    close(query(THETA), 3.96875)
    close(query(descended(support, {"w": THETA}, 1)), 5.6984375)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_maml_gradient(steps: int) -> None:
    expected = {1: (-0.325, -3.9125), 2: (0.100625, -3.0075), 5: (0.678238, -1.293405)}[steps]
    function = lambda values: query(descended(support, values, steps))  # noqa: E731
    close(grad(function)({"w": THETA})["w"], *expected)
    assert_true_gradient(function, {"w": THETA})


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_f1_first_order_gradient_is_the_gradient_at_the_adapted_weights(steps: int) -> None:
    expected = {1: (-1.125, -5.75), 2: (-1.325, -6.4125), 5: (-1.44375, -7.365312)}[steps]
    gradient = grad(lambda values: query(descended(support, values, steps, first_order=True)))({"w": THETA})["w"]
    close(gradient, *expected)
    assert torch.equal(gradient, grad(query)(descended(support, {"w": THETA}, steps).clone()))


@pytest.mark.parametrize(("steps", "expected"), [(1, (0.25, 3.25)), (5, (-1.068125, 9.07375))])
def test_f1_reptile_direction(steps: int, expected: tuple[float, float]) -> None:
    close((THETA - descended(support, {"w": THETA}, steps, first_order=True)) / 0.1, *expected)


@pytest.mark.parametrize("first_order", [False, True])
def test_f1_meta_sgd_rates(first_order: bool) -> None:
    chain = Chain({"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.1))})
    values = {"w": THETA} | prefixed("adapters", chain.init({"w": THETA}))
    gradients = grad(lambda v: query(descended(support, v, 1, chain, first_order=first_order)))(values)
    close(gradients["adapters.meta-sgd.rate.w"], 0.28125, 18.6875)
    close(gradients["adapters.meta-sgd.rate.w"].sum(), 18.96875)
    close(gradients["w"], *((-1.125, -5.75) if first_order else (-0.325, -3.9125)))


def test_f1s_curvature_that_is_not_constant() -> None:
    values = {"w": torch.ones((), dtype=torch.float64)}
    quartic: Loss = lambda theta: theta**4 / 4  # noqa: E731
    parabola: Loss = lambda theta: theta**2 / 2  # noqa: E731
    close(descended(quartic, values, 1), 0.9)
    close(descended(quartic, values, 2), 0.8271)
    for steps, exact, first in ((1, 0.63, 0.9), (2, 0.438280, 0.8271)):
        close(grad(lambda v, n=steps: parabola(descended(quartic, v, n)))(values)["w"], exact)
        close(grad(lambda v, n=steps: parabola(descended(quartic, v, n, first_order=True)))(values)["w"], first)
    close((values["w"] - descended(quartic, values, 2)) / 0.1, 1.729)


def test_zero_inner_steps_or_a_zero_rate_leave_the_parameters_unchanged() -> None:
    assert torch.equal(descended(support, {"w": THETA}, 0), THETA)
    assert torch.equal(descended(support, {"w": THETA}, 3, rate=0.0), THETA)
    gradient = grad(lambda v: query(descended(support, v, 3, rate=0.0)))({"w": THETA})["w"]
    assert torch.equal(gradient, grad(query)(THETA))


def test_the_first_order_gradient_of_a_linear_support_loss_is_exact() -> None:
    linear: Loss = lambda theta: (theta * A).sum()  # noqa: E731
    exact, first = (
        grad(lambda v, f=f: query(descended(linear, v, 3, first_order=f)))({"w": THETA})["w"] for f in (0, 1)
    )
    assert torch.equal(exact, first)


def test_first_order_keeps_no_graph_of_the_inner_loop() -> None:
    theta = THETA.clone().requires_grad_()
    pending, names = [descended(support, {"w": theta}, 10, first_order=True).grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [parent for parent, _ in node.next_functions]
    assert names == {"SubBackward0", "torch::autograd::AccumulateGrad"}


def test_the_objective_gets_all_values_and_its_changes_of_the_state_are_summed_without_a_graph() -> None:
    calls = []

    def objective(params: Params, step: int) -> tuple[Tensor, Params]:
        calls.append((set(params), step))
        return quadratic(params["w"], A) * params["scale"], {"state.count": params["scale"] * (step + 1)}

    one = torch.ones((), dtype=torch.float64)
    values = {"w": THETA, "scale": one.clone().requires_grad_(), "state.count": one}
    fast, state = descend(objective, values, {"w": THETA}, sgd(0.1), 3)
    assert calls == [({"w", "scale", "state.count"}, step) for step in range(3)]
    assert set(fast) == {"w"}
    assert float(state["state.count"]) == 6
    assert not state["state.count"].requires_grad
    assert fast["w"].requires_grad


# Chains.


def test_the_output_of_an_adapter_is_the_gradient_of_the_next_one() -> None:
    chain = Chain({"first": SGD(SGDOptions(lr=0.5)), "second": SGD(SGDOptions(lr=0.2))})
    updates, _ = chain.update({}, {"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, 0)
    close(updates["w"], 0.1, 0.1)


def test_an_inner_step_gets_the_state_that_earlier_steps_changed() -> None:
    # Each step halves the distance to 8, so four steps reach 7.5. Four times the first step's change would be 16.
    def objective(params: Params, step: int) -> tuple[Tensor, Params]:
        return quadratic(params["w"], A), {"state.mean": 0.5 * (8.0 - params["state.mean"])}

    values = {"w": THETA, "state.mean": torch.zeros((), dtype=torch.float64)}
    _, state = descend(objective, values, {"w": THETA}, sgd(0.1), 4)
    assert float(state["state.mean"]) == 7.5


@pytest.mark.parametrize("names", [("sgd", "sgd"), ("meta-sgd", "sgd"), ("sgd", "adam"), ("adam", "meta-sgd")])
def test_every_chain_of_adapters_reduces_the_loss(names: tuple[str, str]) -> None:
    adapters = {
        "sgd": SGD(SGDOptions(lr=0.5)),
        "meta-sgd": MetaSGD(MetaSGDOptions(lr=0.5)),
        "adam": Adam(AdamOptions(lr=0.1)),
    }
    chain = Chain({f"{place}-{name}": adapters[name] for place, name in enumerate(names)})
    params = {"w": THETA}
    values = params | prefixed("adapters", chain.init(params))
    fast, _ = descend(lambda v, step: (support(v["w"]), {}), values, params, chain, 3)
    assert float(support(fast["w"])) < float(support(THETA))


def test_a_chain_prefixes_the_entries_and_the_state_of_each_adapter() -> None:
    chain = Chain({"adam": Adam(AdamOptions()), "meta-sgd": MetaSGD(MetaSGDOptions(lr=-1.0))})
    params = {"w": THETA}
    meta = chain.init(params)
    assert set(meta) == {"state.adam.second.w", "state.adam.count", "meta-sgd.rate.w"}
    state = chain.start(meta, params)
    assert {name.split(".")[0] for name in state} == {"adam"}
    updates, after = chain.update(meta, {"w": grad(support)(THETA)}, state, params, 0)
    close(updates["w"], *(-1e-3 * grad(support)(THETA).sign()))
    assert set(chain.carry(meta, after)) == {"state.adam.second.w", "state.adam.count"}


@pytest.mark.parametrize("cls", LEARNERS)
def test_what_is_frozen_is_not_adapted(cls: type[Any]) -> None:
    free, frozen = built(cls, adapt="all"), built(cls, adapt="all", frozen=["model.0.*"])
    assert frozen.adapted == tuple(name for name in free.adapted if not name.startswith("model.0."))
    values = fresh(frozen)
    fast = frozen.adapt(values, task().support)
    assert [name for name in fast if name in values] == ["model.2.weight", "model.2.bias"]
    assert not torch.equal(fast["model.2.weight"], values["model.2.weight"])
    assert {name for name in frozen.init(make_key(0)) if name.startswith("adapters.")} == set()


def test_an_inner_loop_with_nothing_to_adapt_is_refused() -> None:
    with pytest.raises(ConfigError, match="would adapt is frozen"):
        built(frozen=["model.*"])
