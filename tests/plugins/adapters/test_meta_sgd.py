"""Meta-SGD: a rate for every weight, free in sign. Its gradients are checked with MAML and with the inner loop."""

from __future__ import annotations

import torch

from metaforge.authoring.keys import make_key
from metaforge_plugins.adapters.meta_sgd import MetaSGD, MetaSGDOptions
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.maml import MAML
from toys import THETA, close, fresh, inner_step, learner, smooth, task


def test_there_is_one_rate_per_weight() -> None:
    params = {"w": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(2)}
    rates = MetaSGD(MetaSGDOptions(lr=0.25)).init(params, make_key(0))
    assert {name: (rate.shape, rate.dtype) for name, rate in rates.items()} == {
        "rate.w": ((2, 3), torch.float64),
        "rate.b": ((2,), torch.float32),
    }
    assert all((rate == 0.25).all() for rate in rates.values())


def test_rates_may_be_negative() -> None:
    rates = {"rate.w": torch.tensor([0.1, -0.1], dtype=torch.float64)}
    updates, _ = MetaSGD(MetaSGDOptions()).update(rates, {"w": THETA}, {}, {"w": THETA}, 0)
    close(updates["w"], 0.05, -0.025)


def test_a_constant_rate_is_plain_descent_to_the_bit() -> None:
    gradients = {"w": THETA.sin()}
    meta = MetaSGD(MetaSGDOptions(lr=0.3))
    ours = meta.update(meta.init({"w": THETA}), gradients, {}, {}, inner_step())[0]["w"]
    assert torch.equal(ours, SGD(SGDOptions(lr=0.3)).update({}, gradients, {}, {}, inner_step())[0]["w"])


def test_a_learner_has_rates_for_what_it_adapts_alone() -> None:
    built = learner(MAML, backbone=smooth("batch"), adapters={"meta-sgd": MetaSGD(MetaSGDOptions())})
    values = fresh(built)
    rates = {name.removeprefix("adapters.meta-sgd.rate.") for name in values if name.startswith("adapters.")}
    assert rates == set(built.adapted)
    assert not any("rate" in name for name in built.adapt(values, task().support))
