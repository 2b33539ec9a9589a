"""The small budget on full-size images: 2,000 tasks, 2,304 features."""

from __future__ import annotations

from metaforge.authoring import TaskShape, TaskSpec, feature_size
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan


def test_the_settings_and_the_features() -> None:
    run = resolve([Layer("test", {"learner": {"name": "maml"}, "presets": ["omniglot-seed"]})], scan())
    assert run.run.train.steps * run.run.train.tasks == 2000
    assert run.dataset is not None
    assert run.dataset.config.size == 105
    assert run.dataset.config.rotations == "none"
    assert not run.dataset.config.invert
    assert run.backbone is not None
    spec = TaskSpec("classification", x_shape=(1, 105, 105), outputs=5, shape=TaskShape(5, 1, 15))
    assert feature_size(run.backbone.instantiate().build(spec), (1, 105, 105)) == 2304
