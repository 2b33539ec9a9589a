"""FTML: MAML's loss on a stream; its leader on quadratic tasks is their mean, and one task repeated is offline MAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metaforge
from metaforge.authoring.protocols import Examples, Task, TaskShape
from metaforge.registry.scan import scan
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.datasets.sinusoid import Sinusoid
from metaforge_plugins.learners.gradient.ftml import FTML
from metaforge_plugins.learners.gradient.maml import MAML
from toys import assert_equal_steps, assert_loss_has_its_gradient, fresh, learner, step, tasks


def test_a_step_is_a_step_of_maml() -> None:
    built = [learner(cls, steps=2, adapters={"sgd": SGD(SGDOptions(lr=0.3))}) for cls in (FTML, MAML)]
    batch = tasks(4)
    ours, theirs = (step(one, fresh(one), batch) for one in built)
    assert all(torch.equal(ours.grads[name], theirs.grads[name]) for name in theirs.grads)
    assert_equal_steps(step(built[0], fresh(built[0]), batch, "vmap"), theirs)
    assert_loss_has_its_gradient(built[0])


class Constant(nn.Module):
    """The features are zero, so the output is the bias of the head."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * 0.0


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_the_leader_of_quadratic_tasks_is_their_mean(rate: float) -> None:
    """Of the tasks with loss (θ − a)², the sum of their losses after adaptation has its minimum at the mean of a."""
    backbone: Callable[[], nn.Module] = Constant
    built = learner(FTML, kind="regression", backbone=backbone, adapters={"sgd": SGD(SGDOptions(lr=rate))}, steps=1)
    centres = torch.tensor([[1.0, -2.0], [4.0, 0.5], [-2.0, 3.0], [0.0, 0.1]], dtype=torch.float64)
    for seen in (1, 2, 4):
        values = fresh(built)
        y = centres[:seen].unsqueeze(1)
        x = torch.ones(seen, 1, 3, dtype=torch.float64)
        stream = Task(Examples(x, y), Examples(x, y))
        for _ in range(200):
            grads = step(built, values, stream).grads
            values = {name: value - 0.9 * grads[name] if name in grads else value for name, value in values.items()}
        torch.testing.assert_close(values["model.2.bias"], centres[:seen].mean(0), rtol=1e-9, atol=1e-9)


def test_one_task_repeated_is_offline_training_on_it(tmp_path: Path) -> None:
    class Repeated(Sinusoid):
        """Sinusoids of which every task is the first."""

        def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
            once = super().sample(split, shape, 0, 1, seed=seed)
            support, query = (Examples(*(x.expand(count, *x.shape[1:]) for x in part)) for part in once[:2])
            return Task(support, query)

    registry = scan().with_plugin("dataset", "repeated", Repeated)
    settings = {"train": {"tasks": 3, "lr": 0.01}, "engine": {"threads": 1, "compile": "off"}}
    stream = settings["train"] | {"round": 20}
    online = metaforge.train(
        "ftml", "sinusoid", steps=4, settings=settings | {"train": stream}, out=tmp_path / "a", registry=registry
    )
    offline = metaforge.train("maml", "repeated", steps=4, settings=settings, out=tmp_path / "b", registry=registry)
    for name, value in offline.values.items():
        torch.testing.assert_close(online.values[name], value, rtol=1e-6, atol=1e-7)
