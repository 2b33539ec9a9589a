"""What learners with an inner loop share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.functional import select
from metaforge.authoring.inner_loop import InnerLoopLearner, InnerLoopOptions
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.losses import one_hot
from metaforge.authoring.protocols import Aux, Examples, Key, Options, Params, Pass, Regularizer, Task
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.reptile import Reptile
from toys import POLICIES, assert_true_gradient, fresh, learner, smooth, task

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
    # The first query is the same in both: only with statistics of the query batch may its prediction change.
    assert torch.allclose(whole[0], moved[0], rtol=1e-12) is not one.transductive
    assert one.transductive is (norm in ("transductive", "per-step"))
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


def test_the_first_order_adjoint_makes_the_inner_gradients_constants() -> None:
    exact, first = built(MAML), built(MAML, adjoint="first-order")
    assert exact.tags.exact_meta_gradient
    assert not first.tags.exact_meta_gradient
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
    stored, recomputed = (built(norm=norm, adjoint=adjoint) for adjoint in ("unroll", "recompute"))
    values, example, key = fresh(stored), task(), make_key(0)
    one, two = (torch.func.grad(lambda v, m=m: m.loss(v, example, key)[0])(values) for m in (stored, recomputed))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-12, atol=1e-12)


def test_the_implicit_adjoint_is_the_unrolled_one_where_the_inner_loop_has_converged() -> None:
    options = {"steps": 60, "proximal": 0.5, "adapt": "head", "adapters": {"sgd": SGD(SGDOptions(lr=0.8))}}
    unrolled, implicit = built(**options), built(**options, adjoint="implicit", solver_steps=12)
    values, example, key = fresh(unrolled), task(), make_key(0)
    (one, _), (two, (_, aux)) = (
        torch.func.grad_and_value(lambda v, m=m: m.loss(v, example, key), has_aux=True)(values)
        for m in (unrolled, implicit)
    )
    assert float(aux.metrics["inner_residual"]) < 1e-6
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-8, atol=1e-8)


def test_a_solution_off_the_minimum_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    one = built(adjoint="implicit", proximal=1.0, steps=1)
    values, example = fresh(one), task()
    residual = float(one.loss(values, example, make_key(0))[1].metrics["inner_residual"])
    assert residual > 0.1
    for step in (1, 2):
        one.metaforge_after_step(step=step, metrics={"inner_residual": residual})
    assert capsys.readouterr().err.count("has not converged") == 1
    built().metaforge_after_step(step=1, metrics={"loss": 1.0})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["head", "body", "weights", "all", ["model.0.1.*", "*.bias"]])
def test_what_is_adapted_can_be_a_part_of_the_network(what: Any) -> None:
    one = built(adapt=what)
    values = fresh(one)
    moved = one.adapt(values, task().support)
    head, norm = {"model.2.weight", "model.2.bias"}, {"model.0.1.weight", "model.0.1.bias"}
    body = {name for name in values if name.startswith("model.0.")}
    wanted = {"head": head, "body": body - norm, "weights": body - norm | head, "all": body | head}
    chosen = wanted[what] if isinstance(what, str) else norm | {name for name in values if name.endswith(".bias")}
    assert set(moved) == set(one.adapted) == chosen
    assert not any(torch.equal(moved[name], values[name]) for name in chosen if name.endswith("weight"))


def test_running_averages_in_an_inner_loop_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    built(norm="running").metaforge_run_start()
    assert "learner.norm is running" in capsys.readouterr().err
    for norm in ("transductive", "support", "per-step"):
        built(norm=norm).metaforge_run_start()
    assert capsys.readouterr().err == ""


def test_the_option_recompute_of_older_runs_is_the_adjoint() -> None:
    again = InnerLoopOptions.model_validate({"recompute": True, "steps": 2})
    assert (again.adjoint, again.steps) == ("recompute", 2)
    assert InnerLoopOptions.model_validate({"recompute": False}) == InnerLoopOptions()
    with pytest.raises(ValidationError):
        InnerLoopOptions.model_validate({"recompute": "yes"})


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"matches no value.*Did you mean|matches no value"):
        built(adapt=["model.7.*"])


class PrototypeHead(InnerLoopLearner):
    """A head made from the class means of the support set, which exists only within a task."""

    Config = InnerLoopOptions

    def start(self, values: Params, support: Examples, key: Key | None) -> Params:
        x = support.x @ values["model.0.0.weight"].T
        members = one_hot(support.y, 3, x.dtype)
        means = members.T @ x / members.sum(0).unsqueeze(-1)
        return super().start(values, support, key) | {"made.weight": 2 * means}

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        return self.criterion(self.predict(values, {}, batch.x), batch.y), {}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        values = values | fast
        return x @ values["model.0.0.weight"].T @ values["made.weight"].T

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        fast, _ = self.descend(values, task.support, self.config.steps, key)
        return self.criterion(self.predict(values, fast, task.query.x), task.query.y), Aux({})


def test_an_adapter_learns_rates_of_parameters_that_exist_only_within_a_task() -> None:
    one = learner(PrototypeHead, backbone=smooth(), adapters={"meta-sgd": MetaSGD(MetaSGDOptions(lr=0.1))}, steps=2)
    values = fresh(one)
    assert values["adapters.meta-sgd.rate.made.weight"].shape == (3, values["model.0.0.weight"].shape[0])
    assert "made.weight" not in values
    example, key = task(), make_key(0)
    assert_true_gradient(lambda v: one.loss(v, example, key)[0], values)


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
