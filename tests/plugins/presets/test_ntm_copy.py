"""The protocol of neural Turing machines on the copy task: sequences of one to twenty elements in training."""

from __future__ import annotations

from metaforge.authoring.protocols import TaskShape
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
from metaforge.runs.task_shapes import training_shapes


def test_the_settings() -> None:
    run = resolve([Layer("test", {"learner": {"name": "ntm"}, "presets": ["ntm-copy"]})], scan())
    assert run.dataset is not None
    assert (run.dataset.name, run.dataset.config.bits) == ("copy", 8)
    shapes = training_shapes(run.run)
    assert shapes.extremes == tuple(TaskShape(1, length, length) for length in range(1, 21))
    assert (run.run.task.shots, run.run.task.queries) == (20, 20)
