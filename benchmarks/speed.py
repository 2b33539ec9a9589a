"""The speed of MetaForge, other libraries and plain loops: the same meta-gradients, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from benchmarks.contestants import PEERS, Gradients, Work, metaforge
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.timing import (
    log,
    median,
    projection_difference,
    ratio,
    relative_difference,
    started_contestants,
    time_in_turns,
)
from metaforge.authoring.protocols import TaskShape

Make = Callable[[], Gradients]


class Case(NamedTuple):
    """One comparison; the goals are speeds of MetaForge relative to the fastest other contestant."""

    title: str
    work: Any
    compiled_goal: float | None
    eager_goal: float | None


# The largest relative difference of gradients in float64 that counts as equal.
_EQUAL = 1e-9

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
    for case, (title, work, compiled_goal, eager_goal) in CASES.items():
        if only and case not in only:
            continue
        log(case)
        peers, ours = contestants(work)
        errors = _errors_in_float64(replace(work, dtype=torch.float64, tasks=2))
        if unequal := [name for name, error in errors.items() if not error < _EQUAL]:
            raise SystemExit(f"{case}: the gradients of {', '.join(unequal)} differ from those of the others: {errors}")
        with started_contestants(case, [*peers, *ours]) as running:
            first = {name: contestant.first for name, contestant in running.items()}
            reference = next(iter(running.values())).projections
            differences = {
                name: projection_difference(reference, contestant.projections) for name, contestant in running.items()
            }
            times = time_in_turns({name: contestant.turn for name, contestant in running.items()}, rounds)
        best = min(peers, key=lambda name: median(times[name]))
        rows = []
        for name, seconds in times.items():
            goal = (compiled_goal if "compiled" in name else eager_goal) if name in ours else None
            rows.append(
                {
                    "who": name,
                    "ms": 1e3 * median(seconds),
                    "tasks/s": work.tasks / median(seconds),
                    f"times {best}": ratio(times[best], seconds),
                    "goal": "" if goal is None else f"{goal:g}",
                    "gradient differs": f"{differences[name]:.0e}",
                    "in float64": f"{errors[name]:.0e}" if name in errors else "",
                    "first step, s": first[name],
                }
            )
        yield case, {"title": title, "rows": rows, "seconds": times}


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


def _errors_in_float64(work: Any) -> dict[str, float]:
    """Return the relative difference of each gradient to that of the first peer.

    Compiled contestants are included only in regression, where compilation takes seconds.
    """
    peers, ours = contestants(work)
    reference = next(iter(peers.values()))()()
    quick = isinstance(work, Work) and work.kind == "regression"
    makers = {name: make for name, make in {**peers, **ours}.items() if quick or "compiled" not in name}
    return {name: relative_difference(reference, make()()) for name, make in makers.items()}
