"""The outer optimiser: rates, clipping, groups and bounds, and bit-exact restoring from a snapshot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge.authoring import Optimizer, Options
from metaforge.authoring.protocols import Params
from metaforge.config.settings import GroupConfig, TrainConfig
from metaforge.errors import CheckpointError, ConfigError, ContractError
from metaforge.registry.scan import scan
from metaforge.runs.outer_optimizer import OuterOptimizer, Snapshot, torch_optimizer

VALUES = {"model.w": torch.arange(4.0), "model.b": torch.ones(()), "state.count": torch.zeros(())}
REGISTRY = scan()


def plugin(name: str = "adam", **options: Any) -> Optimizer:
    cls = REGISTRY.load("optimizer", name)
    made: Optimizer = cls(cls.Config(**options))
    return made


class Made(Optimizer):
    """Builds what a function returns."""

    Config = Options

    def __init__(self, make: Any) -> None:
        self.make = make

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        built: torch.optim.Optimizer = self.make(groups)
        return built


def stepped(outer: OuterOptimizer, steps: range) -> Snapshot:
    for step in steps:
        grads = {"model.w": torch.full((4,), 0.1 * step), "model.b": torch.tensor(float(step))}
        outer.step(grads, {"state.count": torch.ones(())}, norm=1.0, factor=1 / step)
    return outer.snapshot()


GROUPS = {"*.b": GroupConfig(lr=0.5, weight_decay=0.1, min=-0.5)}
KINDS = [
    (plugin(), {}),
    (plugin(), {"weight_decay": 0.1, "clip_value": 0.3}),
    (plugin(), {"groups": GROUPS}),
    (plugin("adamw", betas=(0.5, 0.9)), {}),
    (plugin("sgd"), {}),
    (plugin("sgd", momentum=0.9, nesterov=True), {"groups": GROUPS}),
    (plugin("rmsprop", momentum=0.5, centered=True), {}),
    (Made(torch.optim.NAdam), {}),
    (Made(lambda groups: torch.optim.Adam(groups, amsgrad=True)), {}),
    (Made(torch.optim.ASGD), {}),
    (Made(torch.optim.Rprop), {}),
    (Made(torch.optim.Adafactor), {}),
]


@pytest.mark.parametrize(("optimizer", "settings"), KINDS)
def test_training_continues_bit_exactly_from_a_snapshot(optimizer: Optimizer, settings: dict[str, Any]) -> None:
    config = TrainConfig(**settings)
    whole = stepped(OuterOptimizer(config, optimizer, VALUES), range(1, 9))
    half = stepped(OuterOptimizer(config, optimizer, VALUES), range(1, 5))
    again = stepped(OuterOptimizer(config, optimizer, *half), range(5, 9))
    for ours, theirs in zip(whole[:2], again[:2], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.scalars == again.scalars
    assert float(whole.values["state.count"]) == 8
    assert not torch.equal(half.values["model.w"], whole.values["model.w"])


def test_a_snapshot_is_a_copy() -> None:
    outer = OuterOptimizer(TrainConfig(), plugin(), VALUES)
    first = stepped(outer, range(1, 2))
    before = {name: value.clone() for name, value in {**first.values, **first.training}.items()}
    stepped(outer, range(2, 5))
    assert all(torch.equal(value, before[name]) for name, value in {**first.values, **first.training}.items())
    assert torch.equal(VALUES["model.w"], torch.arange(4.0))


def after_one_step(grad: list[float], norm: float = 1.0, factor: float = 1.0, **settings: Any) -> list[float]:
    outer = OuterOptimizer(TrainConfig(lr=1.0, **settings), plugin("sgd"), {"w": torch.zeros(len(grad))})
    outer.step({"w": torch.tensor(grad)}, {}, norm=norm, factor=factor)
    return outer.snapshot().values["w"].tolist()


def test_the_gradient_is_clipped_by_its_norm_and_then_by_value() -> None:
    assert after_one_step([2.0], norm=2.0, clip=0.5) == pytest.approx([-0.5])
    assert after_one_step([3.0, -4.0, 0.1], clip_value=0.5) == pytest.approx([-0.5, 0.5, -0.1])
    assert after_one_step([3.0, -4.0], norm=5.0, clip=2.5, clip_value=1.6) == pytest.approx([-1.5, 1.6])


def test_the_factor_multiplies_the_rate_of_every_group() -> None:
    assert after_one_step([2.0], factor=0.25) == [-0.5]
    config = TrainConfig(lr=1.0, groups={"a": GroupConfig(lr=0.5)})
    outer = OuterOptimizer(config, plugin("sgd"), {"a": torch.zeros(()), "b": torch.zeros(())})
    for _ in range(2):
        outer.step({"a": torch.ones(()), "b": torch.ones(())}, {}, norm=1.0, factor=0.5)
    assert {name: float(value) for name, value in outer.snapshot().values.items()} == {"a": -0.5, "b": -1.0}


def test_bounds_hold_after_each_step_in_their_group_only() -> None:
    config = TrainConfig(lr=1.0, groups={"a*": GroupConfig(min=-0.5), "ab": GroupConfig(min=-0.25, max=0.0)})
    outer = OuterOptimizer(config, plugin("sgd"), dict.fromkeys(("a", "ab", "c"), torch.zeros(2)))
    for sign in (1, -1):
        grad = torch.tensor([sign * 2.0, sign * 0.1])
        outer.step(dict.fromkeys(("a", "ab", "c"), grad), {}, norm=1.0, factor=1.0)
        found = outer.snapshot().values
        if sign == 1:
            assert found["a"].tolist() == pytest.approx([-0.5, -0.1])
            assert found["c"].tolist() == pytest.approx([-2.0, -0.1])
    assert found["a"].tolist() == pytest.approx([1.5, 0.0], abs=1e-7)
    assert found["ab"].tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_a_group_has_its_own_weight_decay_and_the_optimiser_its_default() -> None:
    def decayed(optimizer: Optimizer, **settings: Any) -> list[float]:
        config = TrainConfig(lr=0.1, groups={"b": GroupConfig(weight_decay=1.0)}, **settings)
        outer = OuterOptimizer(config, optimizer, {"a": torch.ones(()), "b": torch.ones(())})
        outer.step({"a": torch.zeros(()), "b": torch.zeros(())}, {}, norm=0.0, factor=1.0)
        return [float(value) for value in outer.snapshot().values.values()]

    assert decayed(plugin("adam")) == pytest.approx([1.0, 0.9])
    assert decayed(plugin("adamw")) == pytest.approx([0.999, 0.9])
    assert decayed(plugin("adamw"), weight_decay=0.0) == pytest.approx([1.0, 0.9])
    assert decayed(plugin("adam"), weight_decay=0.5) == pytest.approx([0.95, 0.9])


@pytest.mark.parametrize(
    "change",
    [
        {"exp_avg.model.w": torch.zeros(3)},
        {"exp_avg.model.x": torch.zeros(4)},
        {"nonsense": torch.zeros(4)},
        {"exp_avg.model.w": None},
        {"step.model.b": None},
        {"exp_avg_sq.model.w": torch.zeros(4, dtype=torch.int64)},
        {"step.model.w": torch.tensor(1)},
        {"group 1.k": torch.tensor(1)},
        {"group 0.params": torch.tensor(1)},
    ],
    ids=str,
)
def test_tensors_of_another_optimiser_are_refused(change: dict[str, Any]) -> None:
    values, training, _ = stepped(OuterOptimizer(TrainConfig(), plugin(), VALUES), range(1, 3))
    wrong: Params = {name: value for name, value in (training | change).items() if value is not None}
    with pytest.raises(CheckpointError, match="of the outer optimiser"):
        OuterOptimizer(TrainConfig(), plugin(), values, wrong)
    with pytest.raises(CheckpointError, match="no parameters"):
        OuterOptimizer(TrainConfig(), plugin(), {"state.x": torch.ones(())}, wrong)


def test_an_optimiser_without_memory_leaves_that_of_another_out() -> None:
    values, training, _ = stepped(OuterOptimizer(TrainConfig(), plugin(), VALUES), range(1, 3))
    OuterOptimizer(TrainConfig(), plugin("sgd"), values, training)
    assert stepped(OuterOptimizer(TrainConfig(), plugin("sgd"), values), range(1, 2)).training == {}


def test_a_learner_without_parameters_needs_no_optimiser() -> None:
    outer = OuterOptimizer(TrainConfig(), plugin(), {"state.count": torch.zeros(())})
    outer.step({}, {"state.count": torch.ones(())}, norm=0.0, factor=1.0)
    assert outer.snapshot() == ({"state.count": torch.ones(())}, {}, {})


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_step_does_not_depend_on_how_numbers_lie_in_memory(optimizer: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    value, grad = (torch.randn(2, 3, 4, 5, generator=draw) for _ in range(2))
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    leaves = [value.clone().requires_grad_(), torch.zeros(3000, requires_grad=True)]
    plain = kind(leaves, lr=0.1, weight_decay=0.0)
    config, maker = TrainConfig(lr=0.1), plugin(optimizer)
    outer = OuterOptimizer(config, maker, {"w": value.to(memory_format=torch.channels_last), "b": torch.zeros(3000)})
    for _ in range(2):
        leaves[0].grad, leaves[1].grad = grad, torch.ones(3000)
        plain.step()
        strided = grad.movedim(1, -1).contiguous().movedim(-1, 1)
        outer.step({"w": strided, "b": torch.ones(()).expand(3000)}, {}, norm=1.0, factor=1.0)
        # What is taken up again need not lie as it did either.
        values, training, _ = outer.snapshot()
        moved = {n: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for n, v in training.items()}
        outer = OuterOptimizer(config, maker, values, moved)
    found = outer.snapshot().values
    torch.testing.assert_close([found["w"], found["b"]], [leaf.detach() for leaf in leaves])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_fused_call_updates_all_parameters_on_the_cpu(name: str) -> None:
    built = torch_optimizer(plugin(name), [{"params": [torch.zeros(2)], "lr": 0.1, "weight_decay": 0.0}])
    assert built.param_groups[0]["fused"]


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, groups: Any) -> None:
        super().__init__([{"params": group["params"]} for group in groups], {})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (torch.optim.LBFGS, "step of LBFGS needs 'closure'.*one meta-gradient per outer step"),
        (lambda groups: torch.nn.Identity(), "build returns an object of type Identity"),
        (lambda groups: torch.optim.SGD([torch.zeros(1)]), "of other parameters"),
        (WithoutRate, "group 0 of the optimiser has no number 'lr'"),
    ],
)
def test_an_optimiser_that_cannot_be_used_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        torch_optimizer(Made(make), [{"params": [torch.zeros(2)], "lr": 0.1, "weight_decay": 0.0}])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_frozen_values_keep_every_bit_and_have_no_state(name: str) -> None:
    values = {**VALUES, "model.frozen": torch.tensor([-0.0, 1e-45, 3.0]), "state.frozen": torch.tensor(-0.0)}
    config = TrainConfig(weight_decay=0.1, freeze=["*frozen"])
    after = stepped(OuterOptimizer(config, plugin(name), values), range(1, 5))
    for frozen in ("model.frozen", "state.frozen"):
        assert torch.equal(after.values[frozen].view(torch.int32), values[frozen].view(torch.int32))
    assert not [key for key in after.training if "frozen" in key]
    assert not torch.equal(after.values["model.w"], values["model.w"])
    OuterOptimizer(config, plugin(name), *after)
    if after.training:
        with pytest.raises(CheckpointError):
            OuterOptimizer(TrainConfig(freeze=["model.w"]), plugin(name), *after)


class Noisy(torch.optim.SGD):
    """Adds noise to its parameters, which it draws from a generator."""

    def __init__(self, groups: Any, *, own: bool) -> None:
        super().__init__(groups)
        self.own = own

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            generator = torch.Generator().manual_seed(group["steps"]) if self.own else None
            for param in group["params"]:
                param.add_(torch.randn(param.shape, generator=generator))


def test_a_step_that_draws_from_the_global_generator_is_refused() -> None:
    """Its run was said to be resumed exactly."""
    outer = OuterOptimizer(TrainConfig(), Made(lambda groups: Noisy(groups, own=False)), VALUES)
    with pytest.raises(ContractError, match="step of Noisy draws from torch's global generator"):
        stepped(outer, range(1, 2))
    seeded = Made(lambda groups: Noisy(groups, own=True))
    whole, first = (OuterOptimizer(TrainConfig(), seeded, VALUES) for _ in range(2))
    restored = OuterOptimizer(TrainConfig(), seeded, *stepped(first, range(1, 3)))
    ours, theirs = stepped(restored, range(3, 5)), stepped(whole, range(1, 5))
    assert all(torch.equal(ours.values[name], theirs.values[name]) for name in VALUES)


def test_a_group_of_frozen_values_is_refused_as_such() -> None:
    config = TrainConfig(freeze=["model.w"], groups={"model.w*": GroupConfig(lr=0.1)})
    with pytest.raises(ConfigError, match="all that it matches is frozen"):
        OuterOptimizer(config, plugin(), VALUES)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"weight_decay": 0.1}, "train.weight_decay"),
        ({"groups": {"*.b": GroupConfig(weight_decay=0.1)}}, 'train.groups."*.b".weight_decay'),
    ],
)
def test_a_weight_decay_that_the_optimiser_ignores_is_refused(settings: dict[str, Any], where: str) -> None:
    rprop = Made(torch.optim.Rprop)
    with pytest.raises(ConfigError, match=r"Rprop has no weight decay, so train.* would have no effect") as caught:
        OuterOptimizer(TrainConfig(**settings), rprop, VALUES)
    assert caught.value.where == where
    OuterOptimizer(TrainConfig(weight_decay=0.0, groups={"*.b": GroupConfig(weight_decay=0.0)}), rprop, VALUES)
    OuterOptimizer(TrainConfig(**settings), Made(torch.optim.Adagrad), VALUES)
