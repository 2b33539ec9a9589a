"""Runs of two steps on glyphs with a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import metaforge
from metaforge.authoring import Params
from metaforge.authoring.keys import make_key


def trained(out: Path, learner: str, *presets: str, init_from: Path | None = None, **train: Any) -> Any:
    """Return a run of two steps by a preset, with a backbone of two filters and further settings of the training."""
    return metaforge.train(
        learner,
        {"name": "glyphs", "train": 12},
        backbone={"name": "conv4", "filters": 2},
        presets=presets,
        steps=2,
        tasks=2,
        init_from=init_from,
        settings={"train": {"ways": 5, "queries": 2, **train}, "engine": {"threads": 1}},
        out=out,
    )


def initial(run: Any) -> Params:
    """Return the learner's own initial values in a run."""
    values: Params = run.learner().init(make_key(0, "init"))
    return values


def changed(values: Params, before: Params) -> set[str]:
    """Return which values differ from those before; of the names `before`, which may be fewer."""
    return {name for name, value in before.items() if not value.equal(values[name])}
