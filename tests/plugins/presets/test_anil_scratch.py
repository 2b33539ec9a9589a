"""ANIL from scratch: body and head are trained, in second order."""

from __future__ import annotations

from pathlib import Path

from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
from preset_runs import changed, initial, trained


def test_body_and_head_are_trained_in_second_order(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "anil", "anil-scratch")
    moved = changed(run.values, initial(run))
    assert {"model.0.0.conv.weight", "model.0.0.norm.weight", "model.2.weight"} <= moved
    assert run.learner().adjoint.method == "unroll"


def test_it_undoes_the_others() -> None:
    layer = Layer("test", {"presets": ["anil-pretrained-frozen", "anil-frozen", "anil-scratch"]})
    train = resolve([layer], scan()).run.train
    assert (train.init_from, train.init_patterns, train.freeze) == (None, [], [])
