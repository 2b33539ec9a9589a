"""Checks of outer optimisers: they minimise a quadratic, obey the learning rate, and resume bit by bit."""

from __future__ import annotations

import json

import torch

from metaforge.authoring.keys import make_key, normal
from metaforge.authoring.protocols import Params
from metaforge.config.settings import GroupConfig, TrainConfig
from metaforge.runs.outer_optimizer import OuterOptimizer, Snapshot
from metaforge.testing.bench import difference
from metaforge.testing.check import check
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject

# Two groups of parameters with different rates.
CONFIG = TrainConfig(lr=0.01, groups={"head.*": GroupConfig(lr=0.02)})
SHAPES = {"body.weight": (3, 4), "body.bias": (4,), "head.scale": ()}
STEPS = 12


def _optimizer(subject: Subject, config: TrainConfig = CONFIG) -> OuterOptimizer:
    """Return the outer optimiser of a subject, over parameters at a distance of about 1 from their minimum at 3."""
    values = {name: 2 + 0.1 * normal(make_key(0, name), shape) for name, shape in SHAPES.items()}
    return OuterOptimizer(config, subject.build(), values)


def _step(optimizer: OuterOptimizer, factor: float = 1.0) -> Snapshot:
    """Take a step with the gradient of half the squared distance to the minimum; return the state after it."""
    values = optimizer.snapshot().values
    optimizer.step({name: value - 3 for name, value in values.items()}, {}, norm=1.0, factor=factor)
    return optimizer.snapshot()


@check("optimizer")
def descends(subject: Subject) -> None:
    """It is built over two groups of parameters, and minimises a quadratic function with the default options."""
    optimizer = _optimizer(subject)
    before = _distance(optimizer.snapshot().values)
    with assert_generators_unchanged(f"a step of {subject.label}"):
        for _ in range(50):
            snapshot = _step(optimizer)
    after = _distance(snapshot.values)
    assert after < before, (
        f"after 50 steps the squared distance to the minimum is {after:.4g}, at first it was {before:.4g}; subtract"
        " from the parameters, in proportion to the group's `lr`"
    )


def _distance(values: Params) -> float:
    return float(sum((value - 3).square().sum() for value in values.values()))


@check("optimizer")
def rates(subject: Subject) -> None:
    """The size of each step follows the `lr` of its group at that step, which the schedule changes."""
    # One optimiser has another factor in its third step, and one has no group with a rate of its own.
    for config, factor in ((CONFIG, 0.1), (TrainConfig(lr=0.01), 1.0)):
        whole, other = _optimizer(subject), _optimizer(subject, config)
        for _ in range(2):
            _step(whole)
            _step(other)
        ours, theirs = _step(whole).values["head.scale"], _step(other, factor).values["head.scale"]
        assert not torch.equal(ours, theirs), (
            "the parameters do not depend on the rate of their group in each step; read group['lr'] in `step`, for each"
            " group"
        )


@check("optimizer")
def resumes(subject: Subject) -> None:
    """Restored from what a checkpoint saves after any step, it continues with bitwise the same steps."""
    optimizer = _optimizer(subject)
    snapshots = [_step(optimizer) for _ in range(STEPS)]
    for taken in range(1, STEPS):
        values, training, scalars = snapshots[taken - 1]
        loaded = json.loads(json.dumps(dict(scalars)))
        restored = OuterOptimizer(CONFIG, subject.build(), values, training, loaded)
        for expected in snapshots[taken:]:
            mismatch = difference(expected._asdict(), _step(restored)._asdict())
            assert not mismatch, (
                f"restored after step {taken}, it takes other steps: {mismatch}; keep all that later steps depend on in"
                " `state` of the parameters or in their groups, as tensors, numbers, strings, booleans or None"
            )
