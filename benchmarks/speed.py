"""MetaForge beside other libraries and plain loops: the same meta-gradients, in turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.contestants import PEERS, Gradients, Work, metaforge
from benchmarks.episodes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.timing import furthest, in_turns, median, ratio
from metaforge import runtime
from metaforge.protocols import TaskShape

SINUSOID = Work("regression", (1,), TaskShape(1, 10, 10), "mlp", {}, tasks=25, steps=5, lr=0.01)
STRIDE = Work("classification", (1, 28, 28), TaskShape(5, 1, 5), "conv4", {"variant": "stride"}, 16, steps=1, lr=0.4)
POOL = Work("classification", (1, 28, 28), TaskShape(5, 1, 15), "conv4", {"variant": "pool"}, 4, steps=5, lr=0.1)

# What is measured, what MetaForge should reach beside the fastest peer: (compiled, not compiled).
CASES: Mapping[str, tuple[str, Any, float | None, float | None]] = {
    "sinusoid-5": ("Sinusoid MLP 1-40-40-1, 25 tasks, 5 inner steps, second order", SINUSOID, 40, 5),
    "sinusoid-1": ("The same, 1 inner step", replace(SINUSOID, steps=1), 20, None),
    "stride": ("Stride-2 Conv-4/64, 28 px, 5w1s, 5 queries, 16 tasks, 1 inner step", STRIDE, 2.5, 2.5),
    "pool-4": ("Pooled Conv-4/64, 28 px, 5w1s, 15 queries, 4 tasks, 5 inner steps", POOL, 2, 2),
    "pool-16": ("Pooled Conv-4/64, 28 px, 5w1s, 15 queries, 16 tasks, 5 inner steps", replace(POOL, tasks=16), 2, 2),
    "protonet": ("ProtoNet, 20-way 1-shot, 15 queries, 4 episodes a batch", ProtoWork(), 2, 2),
}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each case's name and figures."""
    runtime.prepare(None)
    for name, (title, work, compiled_goal, goal) in CASES.items():
        if only and name not in only:
            continue
        print(name, file=sys.stderr)  # noqa: T201
        peers, ours = _contestants(work)
        exact = _exactness(work)
        first: dict[str, float] = {}
        reference = next(iter(peers.values()))()
        differences = {}
        for who, call in {**peers, **ours}.items():
            begin = time.perf_counter()
            found = call()
            first[who] = time.perf_counter() - begin
            differences[who] = furthest(reference, found)
        times = in_turns({**peers, **ours}, rounds)
        best = min(peers, key=lambda who: median(times[who]))
        rows = []
        for who in times:
            row: dict[str, Any] = {
                "who": who,
                "ms": 1e3 * median(times[who]),
                "tasks/s": work.tasks / median(times[who]),
            }
            row |= {f"times {best}": ratio(times[best], times[who]), "gradient differs": f"{differences[who]:.1e}"}
            row |= {"in float64": f"{exact[who]:.1e}" if who in exact else "", "first step, s": first[who]}
            wanted = compiled_goal if "compiled" in who else goal
            row["goal"] = f"{wanted:g} x" if who in ours and wanted is not None else ""
            rows.append(row)
        notes = [f"Rounds: {rounds}. The fastest peer is {best}; ratios are medians over the rounds."]
        yield name, {"title": title, "rows": rows, "notes": notes, "seconds": times}


def _contestants(work: Any) -> tuple[dict[str, Gradients], dict[str, Gradients]]:
    if isinstance(work, ProtoWork):
        ours = {
            "MetaForge": metaforge_prototypes(work),
            "MetaForge compiled": metaforge_prototypes(work, compiled=True),
        }
        return {"a plain loop": plain_prototypes(work)}, ours
    peers = {name: made for name, make in PEERS.items() if (made := _made(make, work)) is not None}
    return peers, {
        "MetaForge": metaforge(work),
        "MetaForge, plan vmap": metaforge(work, plan="vmap"),
        "MetaForge, plan loop": metaforge(work, plan="loop"),
        "MetaForge compiled": metaforge(work, compiled=True),
    }


def _made(make: Callable[[Work], Gradients], work: Work) -> Gradients | None:
    try:
        return make(work)
    except ModuleNotFoundError as missing:
        print(f"  without {missing.name}, which is not installed", file=sys.stderr)  # noqa: T201
        return None


def _exactness(work: Any) -> dict[str, float]:
    """Return how far each gradient is from the first peer's in float64, on a smaller piece of the same work."""
    double = replace(work, dtype=torch.float64, tasks=2)
    peers, ours = _contestants(double)
    reference = next(iter(peers.values()))()
    return {who: furthest(reference, call()) for who, call in {**peers, **ours}.items() if "compiled" not in who}
