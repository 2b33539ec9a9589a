"""How many episodes the data sets give in a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.timing import in_turns, median, timed
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
    """Yield the table of all data sets that are there."""
    calls, notes = {}, []
    kinds: tuple[Any, ...] = (Omniglot, Glyphs, Sinusoid)
    for cls in kinds:
        made = cls(cls.Config(), root=data_root())
        shapes = _SHAPES if made.kind == "classification" else {"10 shots, 10 queries": TaskShape(1, 10, 10)}
        for text, shape in shapes.items():
            try:
                made.sample("train", shape, 0, 1, seed=0)
            except DataError as missing:
                notes.append(f"{cls.__name__}: {missing.what}")
                continue
            calls[cls.__name__, text] = lambda made=made, shape=shape: made.sample("train", shape, 0, _BATCH, seed=0)
    times = in_turns({" | ".join(key): partial(timed, call) for key, call in calls.items()}, rounds)
    rows = [
        {"data set": name, "episodes": text, "episodes/s": round(_BATCH / median(times[f"{name} | {text}"]))}
        for name, text in calls
    ]
    yield "samplers", {"title": f"Episodes drawn in batches of {_BATCH}", "rows": rows, "notes": notes}
