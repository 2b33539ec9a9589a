"""How many episodes per second each data set samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.timing import median, seconds_per_call, time_in_turns
from metaforge.authoring.protocols import TaskShape
from metaforge.data.root import data_root
from metaforge.errors import DataError
from metaforge_plugins.datasets.glyphs import Glyphs
from metaforge_plugins.datasets.omniglot import Omniglot
from metaforge_plugins.datasets.sinusoid import Sinusoid

_SHAPES = {
    "5-way 1-shot, 15 queries": TaskShape(5, 1, 15),
    "20-way 5-shot, 15 queries": TaskShape(20, 5, 15),
}
_BATCH = 64


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the record of all data sets whose files are present; the others are noted."""
    calls, notes = {}, []
    classes: tuple[Any, ...] = (Omniglot, Glyphs, Sinusoid)
    for cls in classes:
        data_set = cls(cls.Config(), root=data_root())
        shapes = _SHAPES if data_set.kind.classes else {"10 shots, 10 queries": TaskShape(1, 10, 10)}
        for description, shape in shapes.items():
            try:
                data_set.sample("train", shape, 0, 1, seed=0)
            except DataError as missing:
                notes.append(f"{cls.__name__}: {missing.what}")
                continue
            calls[cls.__name__, description] = lambda data_set=data_set, shape=shape: data_set.sample(
                "train", shape, 0, _BATCH, seed=0
            )
    times = time_in_turns({" | ".join(key): partial(seconds_per_call, call) for key, call in calls.items()}, rounds)
    rows = [
        {
            "data set": name,
            "episodes": description,
            "episodes/s": round(_BATCH / median(times[f"{name} | {description}"])),
        }
        for name, description in calls
    ]
    yield "samplers", {"title": f"Episodes drawn in batches of {_BATCH}", "rows": rows, "notes": notes}
