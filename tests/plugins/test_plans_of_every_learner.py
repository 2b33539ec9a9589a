"""Every built-in learner gives the same results with every plan, in float64 and in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import add_params
from metaforge.authoring.protocols import Examples, Kind, Params, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import MetaStep
from metaforge.engine.precision import rounding
from metaforge.registry.entry import CORE
from metaforge.registry.scan import scan
from toys import assert_equal_steps, fresh, sgd, step

REGISTRY = scan()
CASES = [
    (entry.name, kind)
    for entry in REGISTRY.entries("learner")
    if entry.distribution == CORE
    for kind in sorted(REGISTRY.load("learner", entry.name).tags.kinds)
]
# Small sizes, with dropout, and with inner steps that change the scales of norm layers.
OPTIONS = {
    "steps": 2,
    "adapt": "all",
    "rows": 8,
    "width": 4,
    "hidden": 6,
    "heads": 2,
    "latent": 4,
    "finetune": 2,
    "dropout": 0.2,
    "encoder": (6,),
    "decoder": (6,),
}
CPU = torch.device("cpu")


class Varied(nn.Module):
    """A network with grouped and dilated convolutions, batch and instance norm, and dropout of entries and channels."""

    def __init__(self, context: int = 0) -> None:
        super().__init__()
        self.of_context = nn.Linear(context, 2, bias=False) if context else None
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.3),
            nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout2d(0.2),
            nn.Conv2d(4, 4, 2, dilation=2), nn.InstanceNorm2d(4, affine=True), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        if self.of_context is not None:
            # Between layers the norms would remove what is added to all entries of a channel.
            x = x * self.of_context(*context).tanh().reshape(2, 1, 1)
        features: Tensor = self.layers(x).flatten(1)
        return features


def varied(name: str, kind: Kind) -> Any:
    """Return a learner of small images with the network `Varied`."""
    cls = REGISTRY.load("learner", name)
    fields = cls.Config.model_fields
    options = {key: value for key, value in OPTIONS.items() if key in fields}
    if "adapt" in fields and fields["adapt"].default != "weights":
        del options["adapt"]  # What the inner loop adapts is part of the method.
    shape = TaskShape(3, 2, 3) if kind == "classification" else TaskShape(1, 6, 9)
    classes = 5 if kind == "classification" else 0
    return cls(cls.Config(**options), Parts(TaskSpec(kind, (2, 6, 6), 3, shape, classes), Varied, sgd(0.2)))


def images(count: int, kind: Kind) -> Task:
    """Return tasks of small images `[count, n, 2, 6, 6]`."""
    generator = torch.Generator().manual_seed(5)

    def examples(n: int) -> Examples:
        x = torch.randn(count, n, 2, 6, 6, generator=generator, dtype=torch.float64)
        if kind == "classification":
            return Examples(x, torch.arange(3).repeat_interleave(n // 3).expand(count, -1))
        return Examples(x, torch.randn(count, n, 3, generator=generator, dtype=torch.float64))

    classes = torch.tensor([4, 0, 2]).expand(count, -1) if kind == "classification" else ()
    return Task(examples(6), examples(9), classes)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_plans_agree_in_float64_on_convolutions_norms_and_noise(name: str, kind: Kind) -> None:
    learner = varied(name, kind)
    values, batch = fresh(learner), images(3, kind)
    looped = step(learner, values, batch)
    assert max(float(grad.abs().max()) for grad in looped.grads.values()) > 1e-3
    for plan in ("vmap", "fold"):
        for chunk in (None, 2):
            assert_equal_steps(step(learner, values, batch, plan, chunk=chunk), looped)


def rounded(name: str, kind: Kind, plan: str) -> list[MetaStep]:
    """Return two outer steps in which products are computed in bfloat16."""
    learner = varied(name, kind)
    values: Params = {n: v.float() for n, v in fresh(learner).items()}
    batch = tree_map(lambda x: x.float() if x.is_floating_point() else x, images(3, kind))
    steps = []
    for _ in range(2):
        with rounding(CPU, "bfloat16", tf32=False):
            steps.append(step(learner, values, batch, plan, chunk=2))
        values = add_params(values, steps[-1].state | {n: -0.01 * grad for n, grad in steps[-1].grads.items()})
    return steps


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_products_in_bfloat16_leave_sums_and_values_in_float32(name: str, kind: Kind) -> None:
    for plan in ("loop", "vmap", "fold"):
        for result in rounded(name, kind, plan):
            for value in (*result.grads.values(), *result.state.values(), result.losses, *result.metrics.values()):
                assert value.dtype == torch.float32, plan
                assert value.isfinite().all(), plan
