"""The protocol of MAML on Omniglot, with the learner's own rates."""

from __future__ import annotations

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan


def test_the_settings() -> None:
    run = resolve([Layer("test", {"learner": {"name": "fomaml"}, "presets": ["omniglot-maml"]})], scan())
    assert run.dataset is not None
    data = run.dataset.config
    assert (data.split, data.rotations, data.resample, data.invert) == ("random", "task", "lanczos", True)
    assert (run.run.task.queries, run.run.evaluate.tasks) == (1, 600)
    assert run.adapters[0].config.lr == 0.4
