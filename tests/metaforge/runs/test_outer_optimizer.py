"""The outer optimiser: schedules, clipping, and bit-exact restoring from a snapshot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metaforge.authoring.protocols import Params
from metaforge.config.settings import TrainConfig
from metaforge.errors import CheckpointError
from metaforge.runs.outer_optimizer import OuterOptimizer, Snapshot

VALUES = {"model.w": torch.arange(4.0), "model.b": torch.ones(()), "state.count": torch.zeros(())}


def stepped(outer: OuterOptimizer, steps: range) -> Snapshot:
    for step in steps:
        grads = {"model.w": torch.full((4,), 0.1 * step), "model.b": torch.tensor(float(step))}
        outer.step(grads, {"state.count": torch.ones(())}, norm=1.0, done=step / 10)
    return outer.snapshot()


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd"}, {"schedule": "cosine", "weight_decay": 0.1}])
def test_training_continues_bit_exactly_from_a_snapshot(options: dict[str, Any]) -> None:
    config = TrainConfig(**options)
    whole = stepped(OuterOptimizer(config, VALUES), range(1, 9))
    half = stepped(OuterOptimizer(config, VALUES), range(1, 5))
    again = stepped(OuterOptimizer(config, *half), range(5, 9))
    for ours, theirs in zip(whole, again, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert float(whole.values["state.count"]) == 8


def test_a_snapshot_is_a_copy() -> None:
    outer = OuterOptimizer(TrainConfig(), VALUES)
    first = stepped(outer, range(1, 2))
    before = {name: value.clone() for name, value in {**first.values, **first.training}.items()}
    stepped(outer, range(2, 5))
    assert all(torch.equal(value, before[name]) for name, value in {**first.values, **first.training}.items())
    assert torch.equal(VALUES["model.w"], torch.arange(4.0))


def test_the_gradient_is_clipped_by_its_norm() -> None:
    config = TrainConfig(optimizer="sgd", lr=1.0, clip=0.5)
    outer = OuterOptimizer(config, {"w": torch.zeros(1)})
    outer.step({"w": torch.tensor([2.0])}, {}, norm=2.0, done=0.0)
    assert float(outer.snapshot().values["w"]) == pytest.approx(-0.5)


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
    ],
    ids=str,
)
def test_tensors_of_another_optimiser_are_refused(change: dict[str, Any]) -> None:
    values, training = stepped(OuterOptimizer(TrainConfig(), VALUES), range(1, 3))
    wrong: Params = {name: value for name, value in (training | change).items() if value is not None}
    with pytest.raises(CheckpointError, match="of the outer optimiser"):
        OuterOptimizer(TrainConfig(), values, wrong)


def test_an_optimiser_without_memory_leaves_that_of_another_out() -> None:
    values, training = stepped(OuterOptimizer(TrainConfig(), VALUES), range(1, 3))
    OuterOptimizer(TrainConfig(optimizer="sgd"), values, training)
    assert stepped(OuterOptimizer(TrainConfig(optimizer="sgd"), values), range(1, 2)).training == {}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_step_does_not_depend_on_how_numbers_lie_in_memory(optimizer: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    value, grad = (torch.randn(2, 3, 4, 5, generator=draw) for _ in range(2))
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    leaves = [value.clone().requires_grad_(), torch.zeros(3000, requires_grad=True)]
    plain = kind(leaves, lr=0.1, weight_decay=0.0)
    config = TrainConfig(optimizer=optimizer, lr=0.1)
    outer = OuterOptimizer(config, {"w": value.to(memory_format=torch.channels_last), "b": torch.zeros(3000)})
    for _ in range(2):
        leaves[0].grad, leaves[1].grad = grad, torch.ones(3000)
        plain.step()
        strided = grad.movedim(1, -1).contiguous().movedim(-1, 1)
        outer.step({"w": strided, "b": torch.ones(()).expand(3000)}, {}, norm=1.0, done=0.0)
        # What is taken up again need not lie as it did either.
        values, training = outer.snapshot()
        moved = {n: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for n, v in training.items()}
        outer = OuterOptimizer(config, values, moved)
    found = outer.snapshot().values
    torch.testing.assert_close([found["w"], found["b"]], [leaf.detach() for leaf in leaves])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_frozen_values_keep_every_bit_and_have_no_state(optimizer: str) -> None:
    values = {**VALUES, "model.frozen": torch.tensor([-0.0, 1e-45, 3.0]), "state.frozen": torch.tensor(-0.0)}
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, freeze=["*frozen"])
    after = stepped(OuterOptimizer(config, values), range(1, 5))
    for name in ("model.frozen", "state.frozen"):
        assert torch.equal(after.values[name].view(torch.int32), values[name].view(torch.int32))
    assert not [key for key in after.training if "frozen" in key]
    assert not torch.equal(after.values["model.w"], values["model.w"])
    OuterOptimizer(config, *after)
    if after.training:
        with pytest.raises(CheckpointError):
            OuterOptimizer(TrainConfig(freeze=["model.w"]), *after)
