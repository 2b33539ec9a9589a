"""Task dropout: one dropout mask per task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import vmap

from metaforge.authoring.keys import make_key
from metaforge.authoring.model import Model
from metaforge.authoring.network import with_head
from metaforge.authoring.protocols import Params, Pass
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.runs.assembly import Components
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.metric.protonet import ProtoNet
from metaforge_plugins.regularizers.task_dropout import TaskDropout
from toys import (
    POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    double,
    fresh,
    learner,
    smooth,
    step,
    tasks,
)

KEY = make_key(0)


def dropout(**options: Any) -> dict[str, TaskDropout]:
    """Return the regularizer under its name."""
    return {"task-dropout": TaskDropout(TaskDropout.Config(**options))}


def maps() -> nn.Module:
    """Return a smooth network of two convolutions on `[n, 1, 4, 4]`, to 36 features."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 4, 2), nn.BatchNorm2d(4), nn.Tanh()
    )


def pure(regularizers: dict[str, TaskDropout] | None = None, **options: Any) -> tuple[Model, Params, Tensor]:
    """Return the model of that network with a head of three outputs, its values and an input."""
    model = Model(with_head(maps, 3, (1, 4, 4)), regularizers=regularizers or dropout(**options))
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, double(model.init(KEY)), x


class Spy(TaskDropout):
    """Keeps what each tapped module was turned into."""

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        new = super().tap(meta, name, module, inputs, output, at)
        self.ratios[name] = new / output
        return new

    ratios: dict[str, Tensor]


def masks(at: Pass, **options: Any) -> dict[str, Tensor]:
    """Return the masks of the two activation layers in a pass."""
    spy = Spy(Spy.Config(**options))
    spy.ratios = {}
    model, values, x = pure({"task-dropout": spy})
    model(values, x, at)
    return spy.ratios


@pytest.mark.parametrize("cls", [MAML, FOMAML, ProtoNet])
def test_no_rate_is_the_base_algorithm_to_the_bit(cls: type[Any]) -> None:
    plain, masked = (learner(cls, backbone=smooth("batch"), regularizers=r) for r in ({}, dropout(rates=(0.0,))))
    values = fresh(plain)
    assert fresh(masked).keys() == values.keys()
    ours, theirs = step(masked, values, tasks(2)), step(plain, values, tasks(2))
    assert torch.equal(ours.losses, theirs.losses)
    assert all(torch.equal(ours.grads[name], theirs.grads[name]) for name in theirs.grads)


@pytest.mark.parametrize("shape", ["channel", "element"])
def test_a_task_has_one_mask_for_all_its_passes_and_another_task_another(shape: str) -> None:
    options = {"rates": (0.5,), "shape": shape}
    first = masks(Pass(KEY, 0, "support"), **options)
    assert set(first) == {"0.2", "0.5"}
    for at in (Pass(KEY, 0, "query"), Pass(KEY, 3, "support"), Pass(KEY, 3, "support", 2)):
        again = masks(at, **options)
        assert all(torch.equal(first[name] == 0, again[name] == 0) for name in first)
    other = masks(Pass(make_key(1), 0, "support"), **options)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    for mask in first.values():
        torch.testing.assert_close(mask[0], mask[-1])
        torch.testing.assert_close(mask, 2 * (mask != 0).double())
        whole = (mask == mask[..., :1, :1]).all()
        assert bool(whole) is (shape == "channel")


def test_no_mask_in_evaluation_and_none_on_queries_on_request() -> None:
    assert all((mask == 1).all() for mask in masks(Pass(None, 0, "support"), rates=(0.9,)).values())
    assert all((mask == 1).all() for mask in masks(Pass(KEY, 0, "query"), rates=(0.5,), query=False).values())
    assert all((mask == 0).any() for mask in masks(Pass(KEY, 0, "support"), rates=(0.5,), query=False).values())


def test_rates_go_by_layer_and_the_last_repeats() -> None:
    layers = [nn.Sequential(nn.Linear(400, 400), nn.ReLU()) for _ in range(4)]
    model = Model(lambda: nn.Sequential(*layers), regularizers=dropout(rates=(0.0, 0.5, 0.25)))
    regularizer = model.regularizers["task-dropout"]
    assert isinstance(regularizer, TaskDropout)
    ones = torch.ones(1, 400)
    relus = [model.module.get_submodule(f"{i}.1") for i in range(4)]
    masked = [regularizer.tap({}, f"{i}.1", relu, ones, ones, Pass(KEY)) for i, relu in enumerate(relus)]
    found = [float((output == 0).float().mean()) for output in masked]
    for share, rate in zip(found, (0.0, 0.5, 0.25, 0.25), strict=True):
        assert abs(share - rate) < 0.08
    assert regularizer.draws(None) == regularizer.draws(KEY) == 1


def test_the_rates_are_known_before_values_are_made_and_asking_changes_nothing() -> None:
    # A process that receives its values from another one never calls `init`.
    model, values, x = pure(rates=(0.5,))
    regularizer = dropout(rates=(0.5,))["task-dropout"]
    other = Model(with_head(maps, 3, (1, 4, 4)), regularizers={"task-dropout": regularizer})
    assert torch.equal(other(values, x, Pass(KEY)), model(values, x, Pass(KEY)))
    before = dict(regularizer.rates)
    assert [*before.values()] == [0.5, 0.5]
    assert regularizer.taps("elsewhere", nn.ReLU())
    assert dict(regularizer.rates) == before


def test_a_second_network_of_a_learner_has_rates_and_masks_of_its_own() -> None:
    regularizer = dropout(rates=(0.1, 0.5))["task-dropout"]

    def model(depth: int, prefix: str) -> Model:
        layers = [nn.ReLU() for _ in range(depth)]
        return Model(lambda: nn.Sequential(*layers), regularizers={"task-dropout": regularizer}, prefix=prefix)

    one, two, third = model(2, "one"), model(1, "two"), model(2, "third")
    x = torch.ones(1, 1000)
    masks = [model({}, x, Pass(KEY)) for model in (one, two, third)]
    shares = [float((mask == 0).float().mean()) for mask in masks]
    assert abs(shares[0] - 0.55) < 0.05
    assert abs(shares[1] - 0.1) < 0.04
    assert not torch.equal(masks[0], masks[2])


def test_the_mask_keeps_the_mean() -> None:
    regularizer = dropout(rates=(0.3,))["task-dropout"]
    layer, x = nn.ReLU(), torch.ones(1, 5, dtype=torch.float64)
    assert regularizer.taps("layer", layer)
    regularizer.attach({"layer": layer})
    keys = torch.stack([make_key(i) for i in range(4000)])
    drawn = vmap(lambda key: regularizer.tap({}, "layer", layer, x, x, Pass(key))[0])(keys)
    assert (drawn.mean(0) - 1).abs().max() < 0.06


@pytest.mark.parametrize("norm", POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    built = learner(MAML, backbone=smooth("batch"), regularizers=dropout(rates=(0.3,)), steps=2, norm=norm)
    values, batch = fresh(built), tasks(4)
    looped = step(built, values, batch)
    assert_equal_steps(step(built, values, batch, "vmap"), looped)
    assert_equal_steps(step(built, values, batch, "vmap", chunk=3), looped)


@pytest.mark.parametrize("norm", POLICIES)
def test_finite_differences(norm: str) -> None:
    built = learner(
        MAML, backbone=smooth("batch"), regularizers=dropout(rates=(0.3,), shape="element"), steps=2, norm=norm
    )
    assert_loss_has_its_gradient(built)


def test_a_network_without_a_layer_to_act_on_is_refused() -> None:
    model = Model(lambda: nn.Sequential(nn.Flatten()), regularizers=dropout())
    with pytest.raises(ConfigError, match="task-dropout"):
        model.init(KEY)


def test_options_are_checked() -> None:
    for wrong in ({"rates": ()}, {"rates": (1.0,)}, {"rates": (-0.1,)}, {"shape": "row"}):
        with pytest.raises(ValidationError):
            TaskDropout.Config(**wrong)  # type: ignore[arg-type]


# With learners that have no inner loop.


def components(learner: str, **options: Any) -> Components:
    """Return the parts of a run of a learner with the regularizer."""
    return Components(resolve([Layer("test", {"learner": learner, "regularizers": {"task-dropout": options}})], scan()))


@pytest.mark.parametrize("name", ["protonet", "leo", "mann"])
def test_what_acts_on_an_inner_loop_alone_is_refused_without_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"'task-dropout', .*; the learner '{name}' uses none") as caught:
        components(name, query=False)
    assert caught.value.where == "regularizers.task-dropout"
    assert "leave it out" in caught.value.remedy


def test_it_is_accepted_with_an_inner_loop_and_masks_everywhere() -> None:
    for options in ({"query": False}, {}):
        assert components("maml", **options).regularizers
    for name in ("protonet", "leo", "mann"):
        assert components(name).regularizers
