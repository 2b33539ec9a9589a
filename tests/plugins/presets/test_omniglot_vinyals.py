"""The protocol of prototypical networks on Omniglot: rotated classes in the evaluation too."""

from __future__ import annotations

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan


def test_the_settings() -> None:
    run = resolve([Layer("test", {"learner": {"name": "protonet"}, "presets": ["omniglot-vinyals"]})], scan())
    assert run.dataset is not None
    assert (run.dataset.config.split, run.dataset.config.rotations) == ("file", "all")
    assert run.run.evaluate.tasks == 1000
