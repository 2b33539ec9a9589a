"""The protocol of MAML on sinusoids: errors on a grid, after several numbers of steps."""

from __future__ import annotations

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan


def test_the_settings() -> None:
    run = resolve([Layer("test", {"learner": {"name": "maml"}, "presets": ["sinusoid-maml"]})], scan())
    assert run.dataset is not None
    assert run.dataset.config.query_grid
    assert (run.run.task.queries, run.run.train.queries, run.run.task.shots) == (100, 10, 10)
    assert run.run.evaluate.steps == [0, 1, 5, 10]
