"""What learners with an inner loop share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metaforge.authoring.functional import select, split_state
from metaforge.authoring.inner_loop import InnerLoopLearner
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.losses import one_hot
from metaforge.authoring.protocols import Aux, Examples, Key, Options, Params, Pass, Regularizer, Task
from metaforge.engine.batch import score_tasks
from metaforge.errors import ConfigError
from metaforge.kernels.implicit import conjugate_gradients
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.reptile import Reptile
from toys import (
    BATCH_POLICIES,
    POLICIES,
    assert_equal_steps,
    assert_true_gradient,
    fresh,
    keys,
    learner,
    smooth,
    step,
    task,
    tasks,
)

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
    for number in (1, 2):
        one.metaforge_after_step(step=number, metrics={"inner_residual": residual})
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


IMPLICIT: dict[str, Any] = {"adjoint": "implicit", "steps": 60, "proximal": 0.5, "adapt": "head"}


def test_the_solvers_residual_can_be_left_out() -> None:
    with_it, without = (built(**IMPLICIT, solver_residual=measured) for measured in (True, False))
    values, example, key = fresh(with_it), task(), make_key(0)
    metrics = with_it.loss(values, example, key)[1].metrics
    assert set(metrics) - set(without.loss(values, example, key)[1].metrics) == {"solver_residual"}


def test_a_context_alone_can_be_adapted_where_there_is_one() -> None:
    with pytest.raises(ConfigError, match="nothing to adapt: the network has no value that adapt='context'"):
        built(adapt="context")


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_the_solvers_residual_is_that_of_the_gradient_of_the_query_loss(norm: str) -> None:
    adapters = {"sgd": SGD(SGDOptions(lr=0.8))}
    one = built(**IMPLICIT, norm=norm, solver_steps=3, adapters=adapters)
    values, example, key = fresh(one), task(), make_key(0)
    found = one.loss(values, example, key)[1].metrics["solver_residual"]
    fast, _ = one.descend(values, example.support, 60, key)
    head = {name: fast[name].detach() for name in one.adapted}

    def support(at: Params) -> Tensor:
        pull = sum((at[name] - values[name]).square().sum() for name in at)
        return one.support_loss(values | at, example.support, 59, key)[0] + 0.25 * pull

    def query(at: Params) -> Tensor:
        return F.cross_entropy(one.predict(values, fast | at, example.query.x, key=key), example.query.y)

    v = torch.cat([part.flatten() for part in torch.func.grad(query)(head).values()])
    hessian = torch.func.jacrev(torch.func.grad(support))(head)
    rows = [[hessian[a][b].reshape(head[a].numel(), -1) for b in head] for a in head]
    matrix = torch.cat([torch.cat(row, 1) for row in rows])
    solved = conjugate_gradients(3)(lambda x: [matrix @ x[0]], [v])[0]
    torch.testing.assert_close(found, (matrix @ solved - v).norm() / v.norm(), rtol=1e-6, atol=1e-9)
    assert found > 1e-4


@pytest.mark.parametrize("plan", ["vmap", "fold"])
def test_all_plans_measure_the_same_residuals(plan: str) -> None:
    one = built(**(IMPLICIT | {"adapt": "weights"}), solver_steps=2)
    values, batch = fresh(one), tasks(3)
    assert_equal_steps(step(one, values, batch, plan), step(one, values, batch))


def test_a_system_that_is_not_solved_and_a_series_that_diverges_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    adapters = {"sgd": SGD(SGDOptions(lr=0.8))}
    for options, words in (
        ({"solver_steps": 1}, "the linear system of the implicit meta-gradient is not solved"),
        ({"solver": "neumann", "solver_rate": 50.0}, "the Neumann series of the implicit meta-gradient diverges"),
        ({}, ""),
    ):
        one = built(**IMPLICIT, **options, adapters=adapters)
        metrics = one.loss(fresh(one), task(), make_key(0))[1].metrics
        one.metaforge_after_step(step=1, metrics={name: float(value) for name, value in metrics.items()})
        text = capsys.readouterr().err
        assert words in text
        assert text.count("Note: ") == bool(words)


def test_without_inner_steps_nothing_is_solved(capsys: pytest.CaptureFixture[str]) -> None:
    one = built(adjoint="implicit", steps=0)
    metrics = one.loss(fresh(one), task(), make_key(0))[1].metrics
    assert set(metrics) == {"score"}
    one.metaforge_after_step(step=1, metrics={"score": 1.0})
    assert capsys.readouterr().err == ""


def test_an_implicit_learner_that_does_not_measure_its_residual_is_refused() -> None:
    one = learner(PrototypeHead, backbone=smooth(), adjoint="implicit", proximal=1.0)
    metrics = one.loss(fresh(one), task(), make_key(0))[1].metrics
    with pytest.raises(ConfigError, match="The loss of PrototypeHead has no metric inner_residual"):
        one.metaforge_after_step(step=1, metrics=metrics)
    learner(PrototypeHead, backbone=smooth()).metaforge_after_step(step=1, metrics={})

    class Annealed(PrototypeHead):
        def during(self, share: float) -> Any:
            return self

    learner(Annealed, backbone=smooth(), adjoint="implicit", proximal=1.0).metaforge_after_step(step=1, metrics={})


def test_an_implicit_meta_gradient_that_is_zero_is_refused() -> None:
    def init(**options: Any) -> Any:
        norm = options.pop("network", "none")
        frozen = options.pop("frozen", ())
        return learner(MAML, backbone=smooth(norm), frozen=frozen, adjoint="implicit", **options).init(make_key(0))

    for refused in (
        {},
        {"network": "batch", "adapt": "all"},
        {"adapt": "head", "frozen": ["model.0.*"]},
    ):
        with pytest.raises(ConfigError, match="the meta-gradient is zero") as caught:
            init(**refused)
        assert "learner.proximal above 0" in caught.value.remedy
    # Each has a meta-gradient: a proximal term, values that are not adapted, or no inner step at all.
    for accepted in ({"proximal": 0.1}, {"adapt": "head"}, {"network": "batch"}, {"steps": 0}):
        assert init(**accepted)
    assert learner(MAML, steps=2).init(make_key(0))
    with_values = {"noise": Noise(Options())}
    assert learner(MAML, adjoint="implicit", regularizers=with_values).init(make_key(0))


def test_what_the_refused_meta_gradient_would_be() -> None:
    one = learner(MAML, adjoint="implicit", steps=3, proximal=0.0)
    values = learner(MAML).init(make_key(0))
    values = {name: value.double() for name, value in values.items()}
    gradient = torch.func.grad(lambda v: one.loss(v, task(), make_key(0))[0])(values)
    assert not any(part.any() for part in gradient.values())


NOISY = replace(CLASSIFICATION, name="noisy", needs_key=True)


class OfNoisyTasks(MAML):
    """Solves tasks of a kind whose evaluation has a key for the noise of an environment."""

    tags = replace(MAML.tags, kinds=frozenset({"noisy"}))


class Environment(OfNoisyTasks):
    """Draws the noise of the environment in its support loss."""

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        assert key is not None
        return super().support_loss(values, batch._replace(x=batch.x + normal(key, batch.x.shape)), step, None)


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_evaluation_draws_no_noise_where_it_has_a_key_for_the_environment(norm: str) -> None:
    one = learner(OfNoisyTasks, kind=NOISY, backbone=dropping, norm=norm, steps=2, test_steps=2)
    values, batch = fresh(one), tasks(2)
    first, second = (score_tasks(one, values, batch, k, kind=NOISY).predictions for k in (keys(2), keys(2) + 7))
    assert torch.equal(first, second)
    losses = [one.loss(values, task(), make_key(seed))[0] for seed in (0, 1)]
    assert losses[0] != losses[1], "in training the network has its noise"
    acting = learner(Environment, kind=NOISY, backbone=dropping, norm=norm, steps=2, test_steps=2)
    first, second = (score_tasks(acting, values, batch, k, kind=NOISY).predictions for k in (keys(2), keys(2) + 7))
    assert not torch.equal(first, second)


class Scaled(nn.Module):
    """A layer with batch norm whose output a context scales and shifts."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.first, self.norm, self.film = nn.Linear(3 + context, 4), nn.BatchNorm1d(4), nn.Linear(context, 8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        hidden = self.norm(self.first(torch.cat([x, context.expand(len(x), -1)], 1)))
        scale, shift = self.film(context).chunk(2)
        return torch.tanh(hidden * (1 + scale) + shift)


class WithContext(MAML):
    """Adapts the head and a context."""

    def __init__(self, config: Any, parts: Any) -> None:
        super().__init__(config, parts, context=2)


class ContextAlone(WithContext):
    """Adapts a context (CAVIA)."""

    def start(self, values: Params, support: Examples, key: Key | None) -> Params:
        return {"context": super().start(values, support, key)["context"]}


@pytest.mark.parametrize("cls", [WithContext, ContextAlone])
@pytest.mark.parametrize("norm", POLICIES)
def test_a_context_is_adapted_and_reaches_every_pass(cls: type[Any], norm: str) -> None:
    reads = {"reader": Reader(Options())}
    one = learner(cls, backbone=Scaled, norm=norm, steps=2, adapt="head", regularizers=reads)
    values, example, key = fresh(one), task(), make_key(0)
    assert "context" not in values
    fast = one.adapt(values, example.support)
    heads = {"model.2.weight", "model.2.bias"} if cls is WithContext else set()
    assert {name for name in fast if not name.startswith("state.")} == {"context", *heads}
    assert bool(fast["context"].abs().min() > 0)
    assert set(one.loss(values, example, key)[1].terms) == {"loss_before"}
    if norm == "support":
        # Also the statistics of the queries are those of the support set under the adapted context.
        first = torch.cat([example.support.x, fast["context"].expand(len(example.support.x), -1)], 1)
        hidden = first @ values["model.0.first.weight"].T + values["model.0.first.bias"]
        torch.testing.assert_close(fast["state.model.0.norm.mean"], hidden.mean(0))
    params, state = split_state(values)
    assert_true_gradient(lambda p: one.loss(p | state, example, key)[0], params)


class Reader(Regularizer):
    """Reads the loss without adaptation."""

    Config = Options
    terms = frozenset({"loss_before"})

    def __init__(self, config: Options) -> None:
        pass


def test_an_empty_network_is_refused_unless_the_learner_starts_from_something_else() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(3))

    class Headless(InnerLoopLearner):
        Config = InnerLoopOptions

        def __init__(self, config: Any, parts: Any) -> None:
            super().__init__(config, parts, outputs=0)

    class Own(Headless):
        def start(self, values: Params, support: Examples, key: Key | None) -> Params:
            return {"made": support.x.mean(0)}

    with pytest.raises(ConfigError, match="There is nothing to adapt"):
        learner(Headless, backbone=normed)
    assert learner(Own, backbone=normed).adapted == ()
