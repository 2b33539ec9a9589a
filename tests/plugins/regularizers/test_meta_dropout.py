"""Meta Dropout: noise whose strength is meta-learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.functional import select
from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import Params, Pass
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.regularizers import meta_dropout
from metaforge_plugins.regularizers.meta_dropout import MetaDropout
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    double,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
PHI = "regularizers.meta-dropout"


def dropout(**options: Any) -> dict[str, MetaDropout]:
    """Return the regularizer under its name."""
    return {"meta-dropout": MetaDropout(MetaDropout.Config(**options))}


def maps() -> nn.Module:
    """Return a smooth network of two convolutions on `[n, 1, 4, 4]`, to 36 features."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 2), nn.BatchNorm2d(4), nn.Tanh()
    )


def pure(regularizers: dict[str, MetaDropout] | None = None, **options: Any) -> tuple[Model, Params, Tensor]:
    """Return the model of that network with a head of three outputs, its values and an input."""
    model = Model(with_head(maps, 3, (1, 4, 4)), regularizers=regularizers or dropout(**options))
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, double(model.init(KEY)), x


def test_every_layer_has_a_twin_and_the_head_one_column() -> None:
    model, values, _ = pure()
    phi = {name: tuple(value.shape) for name, value in select(values, PHI).items()}
    assert phi == {
        "gate.0.0.weight": (8, 1, 3, 3),
        "gate.0.0.bias": (8,),
        "gate.0.3.weight": (4, 8, 2, 2),
        "gate.0.3.bias": (4,),
        "head.2.weight": (1, 36),
        "head.2.bias": (1,),
    }
    weights = torch.cat([value.flatten() for name, value in select(values, PHI).items() if name.endswith("weight")])
    assert 0.01 < float(weights.std()) < 0.03
    assert all(torch.equal(model.init(KEY)[name].double(), value) for name, value in values.items())


def forward(values: Params, x: Tensor, noise: dict[str, Tensor]) -> Tensor:
    """Return the network's output by the equations, with the noise given (none: a query)."""
    for layer, padding in (("0", 1), ("3", 0)):
        phi = select(values, f"{PHI}.gate.0.{layer}")
        a = F.conv2d(x, phi["weight"], phi["bias"], padding=padding) + noise.get(layer, 0)
        mu = F.conv2d(x, values[f"model.0.{layer}.weight"], values[f"model.0.{layer}.bias"], padding=padding)
        x = torch.tanh(F.batch_norm(mu * F.softplus(a), None, None, training=True))
    h, phi = x.flatten(1), select(values, f"{PHI}.head.2")
    logits = F.linear(h, values["model.2.weight"], values["model.2.bias"])
    return logits + F.softplus(F.linear(h, phi["weight"], phi["bias"])) * noise.get("2", 0)


def test_the_noise_stands_where_the_paper_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values, x = pure()
    torch.testing.assert_close(model(values, x, Pass(KEY, 0, "query")), forward(values, x, {}))
    torch.testing.assert_close(model(values, x, Pass(None, 0, "query")), forward(values, x, {}))
    drawn: list[Tensor] = []

    def kept(*args: Any) -> Tensor:
        drawn.append(original(*args))
        return drawn[-1]

    original = meta_dropout.normal
    monkeypatch.setattr(meta_dropout, "normal", kept)
    noisy = model(values, x, Pass(KEY, 0, "support"))
    assert [tuple(eps.shape) for eps in drawn] == [(6, 8, 4, 4), (6, 4, 3, 3), (6, 3)]
    torch.testing.assert_close(noisy, forward(values, x, dict(zip("032", drawn, strict=True))))


def test_noise_is_new_at_every_step_draw_and_task_and_fixed_in_evaluation() -> None:
    model, values, x = pure()
    places = [Pass(key, n, "support", draw) for key in (KEY, make_key(1), None) for n in (0, 1) for draw in (0, 1)]
    outputs = [model(values, x, at) for at in places]
    for i, one in enumerate(outputs):
        assert torch.equal(one, model(values, x, places[i]))
        assert not any(torch.allclose(one, other) for other in outputs[:i])
    regularizer = dropout(test_draws=7)["meta-dropout"]
    assert (regularizer.draws(KEY), regularizer.draws(None)) == (1, 7)


def test_a_unit_gate_without_noise_is_the_base_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = learner(MAML, steps=2)
    noisy = learner(MAML, steps=2, regularizers=dropout())
    values = fresh(plain)
    phi = {name: torch.zeros_like(value) for name, value in double(noisy.init(KEY)).items() if name.startswith(PHI)}
    phi |= {name: value + math.log(math.e - 1) for name, value in phi.items() if name.endswith("bias")}
    monkeypatch.setattr(meta_dropout, "normal", lambda key, shape, dtype: torch.zeros(tuple(shape), dtype=dtype))
    ours, theirs = step(noisy, values | phi, tasks(2)), step(plain, values, tasks(2))
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-12, atol=1e-12)
    for name in values:
        torch.testing.assert_close(ours.grads[name], theirs.grads[name], rtol=1e-9, atol=1e-12)


def test_phi_learns_through_the_adapted_weights_and_the_query_gate_alone() -> None:
    built = learner(MAML, steps=2, regularizers=dropout())
    values, example = fresh(built), task()
    assert not any(name.startswith("regularizers") for name in built.adapted)
    gradient = grad(lambda v: built.loss(v, example, KEY)[0])(values)
    assert all(value.any() for name, value in gradient.items() if name.startswith(PHI))
    fast = built.adapt(values, example.support, key=KEY)
    # With the adapted weights given, the head's φ plays no part: queries have no noise.
    query = grad(lambda v: built.query_loss(v, fast, example, KEY, {})[0])(values)
    assert query[f"{PHI}.gate.0.0.weight"].any()
    assert not query[f"{PHI}.head.2.weight"].any()
    first = learner(FOMAML, steps=2, regularizers=dropout())
    assert not grad(lambda v: first.loss(v, example, KEY)[0])(values)[f"{PHI}.head.2.weight"].any()


def test_without_an_inner_rate_the_noise_has_no_effect() -> None:
    still = {"sgd": SGD(SGDOptions(lr=0.0))}
    built = learner(MAML, steps=2, adapters=still, regularizers=dropout())
    values, example = fresh(built), task()
    assert torch.equal(built.loss(values, example, KEY)[0], built.loss(values, example, make_key(1))[0])
    moving = learner(MAML, steps=2, regularizers=dropout())
    assert not torch.equal(moving.loss(values, example, KEY)[0], moving.loss(values, example, make_key(1))[0])


def test_evaluation_is_repeatable_and_settles_with_more_draws() -> None:
    def reached(draws: int) -> Tensor:
        built = learner(MAML, test_steps=1, regularizers=dropout(test_draws=draws))
        values = fresh(built)
        first, again = (built.adapt(values, task().support)["model.2.weight"] for _ in range(2))
        assert torch.equal(first, again)
        return first

    limit = reached(80)
    assert (reached(20) - limit).norm() < (reached(1) - limit).norm()


@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(MAML, backbone=smooth("batch"), regularizers=dropout(), steps=2, norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "vmap", chunk=3), looped)


@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str) -> None:
    built = learner(MAML, backbone=smooth("batch"), regularizers=dropout(), steps=2, norm=norm)
    assert_loss_has_its_gradient(built)


def test_a_network_without_a_layer_to_act_on_is_refused() -> None:
    model = Model(lambda: nn.Sequential(nn.Flatten()), regularizers=dropout())
    with pytest.raises(ConfigError, match="meta-dropout"):
        model.init(KEY)


def test_options_are_checked() -> None:
    for wrong in ({"test_draws": 0}, {"mode": "learnt"}):
        with pytest.raises(ValidationError):
            MetaDropout.Config(**wrong)  # type: ignore[arg-type]


# With learners that have no inner loop.


def components(learner: str, **options: Any) -> Components:
    """Return the parts of a run of a learner with the regularizer."""
    return Components(resolve([Layer("test", {"learner": learner, "regularizers": {"meta-dropout": options}})], scan()))


@pytest.mark.parametrize("name", ["protonet", "leo", "mann"])
def test_what_acts_on_an_inner_loop_alone_is_refused_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'meta-dropout', .*; the learner '{name}' uses none") as caught:
        components(name)
    assert caught.value.where == "regularizers.meta-dropout"
    assert "leave it out" in caught.value.remedy


def test_it_is_accepted_with_an_inner_loop() -> None:
    assert components("maml").regularizers


def test_options_of_older_run_folders_are_accepted_for_learned_noise_only() -> None:
    old = {"mode": "learned", "rates": [0.1], "shape": "channel", "query": True, "test_draws": 7}
    assert MetaDropout.Config.model_validate(old).test_draws == 7
    with pytest.raises(ValidationError, match="the regularizer task-dropout now"):
        MetaDropout.Config.model_validate({**old, "mode": "mask"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        MetaDropout.Config.model_validate({"rates": [0.1]})
