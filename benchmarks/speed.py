"""The speed of MetaForge, other libraries and plain loops: the same meta-gradients, timed in turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.comparison import Case, Make, compare
from benchmarks.contestants import PEERS, Work, metaforge
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from metaforge.authoring.protocols import TaskShape

SINUSOID = Work("regression", (1,), TaskShape(1, 10, 10), "mlp", {}, tasks=25, steps=5, lr=0.01)
STRIDE = Work("classification", (1, 28, 28), TaskShape(5, 1, 5), "conv4", {"variant": "stride"}, 16, steps=1, lr=0.4)
POOL = Work("classification", (1, 28, 28), TaskShape(5, 1, 15), "conv4", {"variant": "pool"}, 4, steps=5, lr=0.1)

CASES: Mapping[str, Case] = {
    "sinusoid-5": Case("Sinusoid MLP 1-40-40-1, 25 tasks, 5 inner steps, second order", SINUSOID, 40, 5),
    "sinusoid-1": Case(
        "Sinusoid MLP 1-40-40-1, 25 tasks, 1 inner step, second order", replace(SINUSOID, steps=1), 20, None
    ),
    "stride": Case("Stride-2 Conv-4/64, 28 px, 5-way 1-shot, 5 queries, 16 tasks, 1 inner step", STRIDE, 2.5, 2.5),
    "pool-4": Case("Pooled Conv-4/64, 28 px, 5-way 1-shot, 15 queries, 4 tasks, 5 inner steps", POOL, 2, 2),
    "pool-16": Case(
        "Pooled Conv-4/64, 28 px, 5-way 1-shot, 15 queries, 16 tasks, 5 inner steps", replace(POOL, tasks=16), 2, 2
    ),
    "protonet": Case("ProtoNet, 20-way 1-shot, 15 queries, 4 episodes per batch", ProtoWork(), 2, 2),
}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of each case."""
    return compare("speed", CASES, contestants, only, rounds)


def contestants(work: Any) -> tuple[dict[str, Make], dict[str, Make]]:
    """Return makers of the gradients of the peers and of MetaForge, by name."""
    if isinstance(work, ProtoWork):
        return {"a plain loop": partial(plain_prototypes, work)}, {
            "MetaForge": partial(metaforge_prototypes, work),
            "MetaForge compiled": partial(metaforge_prototypes, work, compiled=True),
        }
    missing = missing_peers()
    peers = {name: partial(make, work) for name, make in PEERS.items() if name not in missing}
    return peers, {
        "MetaForge": partial(metaforge, work),
        "MetaForge, plan vmap": partial(metaforge, work, plan="vmap"),
        "MetaForge, plan loop": partial(metaforge, work, plan="loop"),
        "MetaForge compiled": partial(metaforge, work, compiled=True),
    }


def missing_peers() -> list[str]:
    """Return the names of the peers that are not installed."""
    return [name for name in PEERS if " " not in name and find_spec(name) is None]
