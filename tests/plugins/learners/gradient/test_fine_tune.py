"""Fine-tuning: joint training of one network, which a task continues on its support set."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

import metaforge
from metaforge.authoring import Key, Options, Params, Pass, Regularizer
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.errors import ConfigError
from metaforge_plugins.adapters.adam import Adam, AdamOptions
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.baseline import Baseline
from metaforge_plugins.learners.gradient.fine_tune import FineTune
from pretraining_toys import (
    CLASSES,
    KEY,
    assert_order_and_labels_are_only_names,
    assert_pretrains,
    assert_wrong_labels_are_chance,
    everything,
    logits_of,
    numbered,
    numbered_tasks,
    plain_network,
    pretraining,
    values_of,
)
from toys import BATCH_POLICIES, assert_equal_steps, assert_true_gradient, fresh, learner, smooth, step, task, tasks

RATE = 0.1


def built(**options: Any) -> Any:
    """Return fine-tuning in classification with plain descent."""
    return pretraining(FineTune, adapters={"sgd": SGD(SGDOptions(lr=RATE))}, **options)


def regression(**options: Any) -> Any:
    """Return fine-tuning in regression with plain descent."""
    return learner(FineTune, kind="regression", adapters={"sgd": SGD(SGDOptions(lr=RATE))}, **options)


def linear(features: Tensor, values: Params) -> Tensor:
    """Return the logits of all classes."""
    return F.linear(features, values["classifier.weight"], values["classifier.bias"])


def of_head(one: Any, prefix: str) -> Params:
    """Return the random values of a learner with a prefix."""
    return {name: value for name, value in fresh(one).items() if name.startswith(prefix)}


def test_pretraining_is_that_of_plain_torch() -> None:
    one, module = built(norm="running"), plain_network()
    classifier = of_head(one, "classifier.")
    assert classifier["classifier.weight"].shape == (CLASSES, 4)
    assert_pretrains(one, values_of(module) | classifier, module, linear)


def network_and_values(one: Any) -> tuple[nn.Sequential, Params]:
    """Return a network of torch alone with a head for regression, and the values of a learner that has it."""
    body = smooth()().double()
    head = nn.Linear(4, 2).double()
    values = values_of(body) | {f"head.{name}": value.detach().clone() for name, value in head.named_parameters()}
    assert values.keys() == one.init(KEY).keys()
    return nn.Sequential(body, head), values


def names_in(module: nn.Sequential) -> Params:
    """Return the parameters of body and head by the names of a learner's values."""
    body, head = module
    return {f"model.{n}": p for n, p in body.named_parameters()} | {f"head.{n}": p for n, p in head.named_parameters()}


def test_an_outer_step_on_curves_is_a_step_of_joint_training() -> None:
    # The multi-task baseline: one regression on the examples of all tasks, without adaptation.
    one = regression()
    module, values = network_and_values(one)
    several = [everything(task(seed, "regression")) for seed in range(3)]
    x, y = (torch.cat([getattr(each, name) for each in several]) for name in ("x", "y"))
    F.mse_loss(module(x), y).backward()
    found = step(one, values, tasks(3, "regression"))
    for name, parameter in names_in(module).items():
        torch.testing.assert_close(found.grads[name], parameter.grad, rtol=1e-9, atol=1e-12)
    assert not one.tags.uses_classes


def tuned(module: nn.Module, loss: Any, support: Any, steps: int) -> nn.Module:
    """Return a copy of a network after some steps of torch's SGD on a support set."""
    copied = copy.deepcopy(module)
    descent = torch.optim.SGD(copied.parameters(), lr=RATE)
    for _ in range(steps):
        descent.zero_grad()
        loss(copied(support.x), support.y).backward()
        descent.step()
    return copied


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_task_of_curves_is_plain_descent_from_the_joint_weights(steps: int) -> None:
    one = regression()
    module, values = network_and_values(one)
    example = task(5, "regression")
    expected = tuned(module, F.mse_loss, example.support, steps)
    fast = one.adapt(values, example.support, steps=steps)
    for name, parameter in names_in(expected).items():
        torch.testing.assert_close(fast[name], parameter.detach(), rtol=1e-9, atol=1e-12)
    prediction = one.predict(values, fast, example.query.x)
    torch.testing.assert_close(prediction, expected(example.query.x).detach(), rtol=1e-9, atol=1e-12)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of a batch and its variance, as batch norm takes it."""
    return x.mean(0), x.var(0, unbiased=False)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_task_of_classes_is_plain_descent_of_all_weights_with_a_new_head(steps: int, norm: str) -> None:
    # In training mode torch normalises by the batch, here the support set.
    one, body = built(norm=norm), plain_network().train(norm != "running")
    values, example = values_of(body) | of_head(one, "classifier."), numbered()
    head = nn.Linear(4, 3).double()
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    expected = tuned(nn.Sequential(body, head), F.cross_entropy, example.support, steps)
    fast = one.adapt(values, example.support, steps=steps)
    for name, parameter in names_in(expected).items():
        torch.testing.assert_close(fast[name], parameter.detach(), rtol=1e-9, atol=1e-12)
        # The head of zeros gives the body no gradient.
        assert steps > 1 or name.startswith("head.") or torch.equal(fast[name], values[name])
    if norm == "support":
        batch_norm = expected[0][1].eval()
        batch_norm.running_mean, batch_norm.running_var = moments(expected[0][0](example.support.x).detach())
    prediction = one.predict(values, fast, example.query.x)
    torch.testing.assert_close(prediction, expected(example.query.x).detach(), rtol=1e-9, atol=1e-12)


def test_with_a_frozen_body_it_is_the_baseline() -> None:
    one = built(frozen=["model.*"])
    other = pretraining(Baseline, lr=RATE, weight_decay=0.0, steps=10, norm="support")
    values, example = fresh(one), numbered()
    fast = one.adapt(values, example.support)
    assert not fast.keys() & values.keys()
    torch.testing.assert_close(one.predict(values, fast, example.query.x), logits_of(other, values, example))
    with pytest.raises(ConfigError, match="frozen"):
        regression(frozen=["model.*", "head.*"])


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_the_affine_parameters_of_norm_layers_move_unless_only_weights_do(norm: str) -> None:
    values, support = fresh(built(norm=norm)), numbered().support
    for adapt, moves in (("all", True), ("weights", False)):
        fast = built(norm=norm, adapt=adapt).adapt(values, support)
        assert ("model.1.weight" in fast and not torch.equal(fast["model.1.weight"], values["model.1.weight"])) is moves


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    curves = regression(backbone=smooth("batch"), norm=norm)
    for one, batch in ((built(norm=norm), numbered_tasks(4)), (curves, tasks(4, "regression"))):
        values = fresh(one)
        looped = step(one, values, batch)
        for plan in ("vmap", "fold"):
            assert_equal_steps(step(one, values, batch, plan), looped)
            assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)
        assert set(looped.metrics) == {"score"}


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    curves = regression(backbone=smooth("batch"), norm=norm)
    for one, example in ((built(norm=norm), numbered(3)), (curves, task(3, "regression"))):
        params, state = split_state(fresh(one, 3))
        assert_true_gradient(lambda p, o=one, s=state, e=example: o.loss(p | s, e, KEY)[0], params)


def test_without_a_step_no_class_is_preferred() -> None:
    values, example = fresh(built()), numbered()
    still = pretraining(FineTune, adapters={"sgd": SGD(SGDOptions(lr=0.0))})
    for one, options in ((built(), {"steps": 0}), (still, {})):
        loss = F.cross_entropy(logits_of(one, values, example, **options), example.query.y)
        assert float(loss) == pytest.approx(math.log(3), rel=1e-12)


def test_order_and_labels_of_the_support_set() -> None:
    assert_order_and_labels_are_only_names(built(), fresh(built()))


def test_wrong_labels_give_chance() -> None:
    assert_wrong_labels_are_chance(built(), fresh(built()))


def test_a_task_may_have_more_ways_than_those_of_the_training() -> None:
    assert logits_of(built(ways=5), fresh(built()), numbered(ways=5)).shape == (15, 5)
    assert not FineTune.tags.fixed_ways


@pytest.mark.parametrize("adapter", ["meta-sgd", "adam"])
def test_an_adapter_with_values_is_refused_because_nothing_trains_them(adapter: str) -> None:
    chosen = {"meta-sgd": MetaSGD(MetaSGDOptions()), "adam": Adam(AdamOptions())}[adapter]
    with pytest.raises(ConfigError, match=r"own values would never change, such as (meta-sgd\.rate|state\.adam)\."):
        pretraining(FineTune, adapters={adapter: chosen}).init(KEY)
    one = pretraining(FineTune, adapters={"adam": Adam(AdamOptions(carry=False))})
    assert logits_of(one, fresh(one), numbered()).isfinite().all()


class Shifted(Regularizer):
    """Adds the number of the draw to the output of the network's linear layer, and asks for two draws."""

    Config = Options

    def __init__(self) -> None: ...

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether a module is the linear layer."""
        return isinstance(module, nn.Linear)

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the shifted output."""
        return output + at.draw

    def draws(self, key: Key | None) -> int:
        """Return 2."""
        return 2


def test_the_loss_of_a_task_is_averaged_over_the_draws_of_a_regularizer() -> None:
    one = built(backbone=smooth(), regularizers={"shifted": Shifted()})
    values, support = fresh(one), numbered().support

    def loss(params: Params) -> Tensor:
        layer = F.linear(support.x, values["model.0.weight"], values["model.0.bias"])
        logits = [(layer + draw).tanh() @ params["weight"].T + params["bias"] for draw in range(2)]
        return (F.cross_entropy(logits[0], support.y) + F.cross_entropy(logits[1], support.y)) / 2

    grads = grad(loss)({"weight": torch.zeros(3, 4).double(), "bias": torch.zeros(3).double()})
    fast = one.adapt(values, support, steps=1)
    torch.testing.assert_close(fast["head.weight"], -RATE * grads["weight"], rtol=1e-9, atol=1e-12)


def test_without_outer_steps_a_task_begins_with_random_weights(tmp_path: Path) -> None:
    settings = {"engine": {"threads": 1}}
    run = metaforge.train("fine-tune", "sinusoid", steps=0, seed=2, out=tmp_path / "run", settings=settings)
    own = run.learner().init(make_key(2, "init"))
    assert own.keys() == run.values.keys()
    assert all(torch.equal(run.values[name], value) for name, value in own.items())
    record = run.evaluate(tasks=20, steps=[0, 10])["results"][0]["scores"]
    assert all(math.isfinite(entry["mean"]) for entry in record)
