"""Tests of how the tasks of each shape are computed: one learner and one compiled step per shape and phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from metaforge.authoring.protocols import Learner, Tags, TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.data.batches import TaskBatch, episode_batches
from metaforge.engine import plans, processes
from metaforge.errors import ConfigError
from metaforge.registry.scan import scan
from metaforge.runs import computations
from metaforge.runs.assembly import Components
from metaforge.runs.computations import Computations, refuse_setting_at_fault
from metaforge.runs.worker import Worker
from metaforge.testing.toy import ToyClasses
from metaforge_plugins.learners.metric.protonet import ProtoNet

CPU = torch.device("cpu")


class Phased(ProtoNet):
    """Has a learner of its own for the second half of the training."""

    tags: Tags = ProtoNet.tags
    built: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, config: Any, parts: Any) -> None:
        super().__init__(config, parts)
        self.built.append(tuple(parts.spec.shape))
        self.late = ProtoNet(config, parts)

    def during(self, share: float) -> Learner:
        return self if share < 0.5 else self.late


def made(**settings: Any) -> Components:
    registry = scan().with_plugin("learner", "phased", Phased).with_plugin("dataset", "toys", ToyClasses)
    values = {"learner": "phased", "dataset": "toys", "backbone": {"name": "mlp", "widths": [4]}, **settings}
    return Components(resolve([Layer("a test", values)], registry))


def begun(parts: Components, examples: int | None = None) -> tuple[Computations, Any]:
    """Return the computations in their first phase, and the run's learner."""
    spec = parts.training_spec()
    workload = plans.Workload(spec, CPU, 4, (4,), 10_000, None, examples)
    learner = parts.learner(spec)
    several = Computations(parts, spec, learner, workload)
    several.begin_phase(learner, 0.0, plans.PLAIN)
    Phased.built.clear()
    return several, learner


def batch(parts: Components, ways: int, shots: int) -> TaskBatch:
    spec = parts.dataset.spec("train", TaskShape(ways, shots, 2))
    (found,) = episode_batches(parts.dataset, "train", spec, None, range(4), seed=0)
    return found


class Recorded:
    """In place of a compiler: remembers how many there are, and computes eagerly."""

    made: ClassVar[int] = 0

    def __init__(self, function: Callable[..., Any]) -> None:
        Recorded.made += 1
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def test_each_shape_has_one_learner_and_one_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computations, "Compiler", Recorded)
    monkeypatch.setattr(Recorded, "made", 0)
    parts = made(train={"ways": [3, 5], "queries": 2}, engine={"compile": "on"})
    several, main = begun(parts)
    five, three, again = (several.of(batch(parts, ways, 1)) for ways in (5, 3, 3))
    assert five.learner is main
    assert three is again
    assert three.learner is not main
    assert (Recorded.made, three.compiled is five.compiled) == (2, False)
    assert Phased.built == [(3, 1, 2)]


def test_a_phase_is_that_of_the_learners_of_all_shapes() -> None:
    parts = made(train={"ways": [3, 5], "queries": 2})
    several, main = begun(parts)
    early: Any = several.of(batch(parts, 3, 1)).learner
    several.begin_phase(main.late, 0.5, plans.PLAIN)
    assert several.of(batch(parts, 5, 1)).learner is main.late
    assert several.of(batch(parts, 3, 1)).learner is early.late
    assert Phased.built == [(3, 1, 2)]


def test_varied_tasks_have_the_chunk_of_their_size() -> None:
    parts = made(task={"sampler": "varied"}, varied={"min_ways": 2, "max_ways": 4}, engine={"plan": "vmap"})
    several, _ = begun(parts, 600)
    spec = parts.training_spec()
    batches = episode_batches(parts.dataset, "train", spec, parts.training_bounds, range(12), seed=0)
    found = [several.of(one) for one in batches]
    assert len({id(one.learner) for one in found}) == len({one.spec for one in batches}) == 3
    assert all(one.compiled is None for one in found)
    assert {one.decision.not_compiled_because for one in found} == {"the shape of tasks varies"}


def test_shaped_tasks_are_prepared_and_keep_their_positions() -> None:
    parts = made(train={"ways": 3, "queries": 2})
    several, _ = begun(parts)
    one = batch(parts, 3, 1)._replace(episodes=(10, 12, 13, 19))
    shaped = several.shaped(one, 9, CPU, torch.float64)
    assert (shaped.positions, shaped.tasks.support.x.dtype) == ([1, 3, 4, 10], torch.float64)
    assert len({int(key) for key in shaped.keys}) == 4


def test_the_setting_at_fault_is_refused() -> None:
    parts = made(train={"ways": 3, "queries": 2})
    several, _ = begun(parts)
    shaped = several.shaped(batch(parts, 3, 1), 0, CPU, torch.float32)._replace(compiled=None)
    with processes.world(CPU) as world:
        values = Worker(parts.resolved, world).initial()
    error = RuntimeError("no such operation\nand more")
    with pytest.raises(ConfigError, match=r"A compiled step cannot run Phased: no such operation\n"):
        refuse_setting_at_fault([shaped._replace(compiled=lambda *x: None)], values, "vmap", (), error)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match=r"Plan 'vmap' cannot run Phased: no such operation\n"):
        refuse_setting_at_fault([shaped], values, "vmap", (), error)
    refuse_setting_at_fault([shaped], values, "loop", (), error)
