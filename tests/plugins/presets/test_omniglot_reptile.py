"""The protocol of Reptile on Omniglot: one query per class."""

from __future__ import annotations

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan


def test_the_settings() -> None:
    run = resolve([Layer("test", {"learner": {"name": "reptile"}, "presets": ["omniglot-reptile"]})], scan())
    assert run.dataset is not None
    assert (run.dataset.config.rotations, run.dataset.config.invert) == ("train", False)
    assert (run.run.task.queries, run.run.evaluate.tasks) == (1, 10_000)
