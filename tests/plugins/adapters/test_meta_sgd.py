"""Meta-SGD: a rate for every weight, free in sign. Its gradients are checked with MAML and with the inner loop."""

from __future__ import annotations

import pytest
import torch

from metaforge.authoring.keys import make_key
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
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


def test_rates_are_drawn_from_the_range_by_the_key_and_the_name() -> None:
    params = {"w": torch.zeros(200, 50, dtype=torch.float64), "v": torch.zeros(200, 50, dtype=torch.float64)}
    adapter = MetaSGD(MetaSGDOptions())
    first, again, other = (adapter.init(params, make_key(seed)) for seed in (0, 0, 1))
    rates = first["rate.w"]
    assert torch.equal(rates, again["rate.w"])
    assert not torch.equal(rates, other["rate.w"])
    assert not torch.equal(rates, first["rate.v"])
    assert 0.005 <= float(rates.min()) < 0.0052
    assert 0.0998 < float(rates.max()) <= 0.1
    assert abs(float(rates.mean()) - 0.0525) < 0.001


@pytest.mark.parametrize("dataset", ["sinusoid", "glyphs"])
def test_it_takes_one_step_unless_the_user_asks_for_more(dataset: str) -> None:
    values = {"learner": {"name": "maml"}, "dataset": {"name": dataset}, "adapters": ["meta-sgd"]}
    chosen = resolve([Layer("test", values)], scan())
    assert chosen.learner is not None
    assert (chosen.learner.config.steps, chosen.learner.config.test_steps) == (1, 1)
    more = resolve([Layer("test", values | {"learner": {"name": "maml", "test_steps": 4}})], scan())
    assert more.learner is not None
    assert more.learner.config.test_steps == 4


def test_rates_may_be_negative() -> None:
    rates = {"rate.w": torch.tensor([0.1, -0.1], dtype=torch.float64)}
    updates, _ = MetaSGD(MetaSGDOptions()).update(rates, {"w": THETA}, {}, {"w": THETA}, 0)
    close(updates["w"], 0.05, -0.025)


def test_a_constant_rate_is_plain_descent_to_the_bit() -> None:
    gradients = {"w": THETA.sin()}
    meta = MetaSGD(MetaSGDOptions(lr=0.3))
    ours = meta.update(meta.init({"w": THETA}, make_key(0)), gradients, {}, {}, inner_step())[0]["w"]
    assert torch.equal(ours, SGD(SGDOptions(lr=0.3)).update({}, gradients, {}, {}, inner_step())[0]["w"])


def test_a_learner_has_rates_for_what_it_adapts_alone() -> None:
    built = learner(MAML, backbone=smooth("batch"), adapters={"meta-sgd": MetaSGD(MetaSGDOptions())})
    values = fresh(built)
    rates = {name.removeprefix("adapters.meta-sgd.rate.") for name in values if name.startswith("adapters.")}
    assert rates == set(built.adapted)
    assert not any("rate" in name for name in built.adapt(values, task().support))
