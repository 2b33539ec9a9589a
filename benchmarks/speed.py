"""MetaForge beside other libraries and plain loops: the same meta-gradients, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.contestants import PEERS, Gradients, Work, metaforge
from benchmarks.prototypes import ProtoWork, metaforge_prototypes, plain_prototypes
from benchmarks.timing import apart, furthest, in_turns, median, ratio, say, started
from metaforge.authoring.protocols import TaskShape

Make = Callable[[], Gradients]

# How far gradients in float64 may be apart, relative to their length.
_EQUAL = 1e-9

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

# Where the time of a compiled step goes, found with torch's profiler, and what was tried.
NOTES: Mapping[str, str] = {
    "sinusoid-5": "Compiled, three fifths of the time are 42 batched products of 25 matrices of at most 40 x 40, and a"
    " tenth is the Python between them. Five of them, whose transposes were asked for, took six times as long as the"
    " others until they were written as products of the transposes. Tried without gain: the compiler's own products,"
    " products as fused sums, its C++ wrapper (fails on this step). Two threads would be a quarter faster alone, but"
    " many times slower beside another busy program, so one is the choice of `auto`.",
    "stride": "Compiled, two thirds of the time are convolutions, and 60 % of their ceiling is reached; the rest are"
    " passes of batch norm and ReLU over the activations. At once, torch's backward pass of a strided convolution in"
    " its usual order of memory runs at half of its speed with channels innermost; channels innermost at once were"
    " slower, by the cost of functions of one's own.",
    "pool-16": "A first step of a minute is this machine providing memory that nobody has used before; it falls on"
    " whoever comes first.",
    "pool-4": "Compiled, half of the time are convolutions. The compiler's own max pooling took 145 of 720 ms of one"
    " thread in the backward pass alone; as a kernel of its own it takes 5 ms.",
}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each case's name and figures."""
    for name, (title, work, compiled_goal, goal) in CASES.items():
        if only and name not in only:
            continue
        say(name)
        peers, ours = contestants(work)
        exact = _exactness(replace(work, dtype=torch.float64, tasks=2))
        if wrong := [who for who, error in exact.items() if not error < _EQUAL]:
            raise SystemExit(f"{name}: the gradients of {', '.join(wrong)} are not those of the others: {exact}")
        with started(name, [*peers, *ours]) as running:
            first = {who: one.first for who, one in running.items()}
            reference = next(iter(running.values())).shadows
            different = {who: apart(reference, one.shadows) for who, one in running.items()}
            times = in_turns({who: one.turn for who, one in running.items()}, rounds)
        best = min(peers, key=lambda who: median(times[who]))
        rows = []
        for who, seconds in times.items():
            wanted = (compiled_goal if "compiled" in who else goal) if who in ours else None
            rows.append(
                {
                    "who": who,
                    "ms": 1e3 * median(seconds),
                    "tasks/s": work.tasks / median(seconds),
                    f"times {best}": ratio(times[best], seconds),
                    "goal": "" if wanted is None else f"{wanted:g}",
                    "gradient differs": f"{different[who]:.0e}",
                    "in float64": f"{exact[who]:.0e}" if who in exact else "",
                    "first step, s": first[who],
                }
            )
        notes = [
            f"{rounds} rounds. The fastest peer is {best}; ratios are medians over the rounds. Gradients: the"
            " difference to the first row's, relative to it, along eight random directions; in float64 on two tasks."
        ]
        notes += [NOTES[name]] if name in NOTES else []
        yield name, {"title": title, "rows": rows, "notes": notes, "seconds": times}


def contestants(work: Any) -> tuple[dict[str, Make], dict[str, Make]]:
    """Return makers of the peers' gradients and of ours, by name."""
    if isinstance(work, ProtoWork):
        return {"a plain loop": partial(plain_prototypes, work)}, {
            "MetaForge": partial(metaforge_prototypes, work),
            "MetaForge compiled": partial(metaforge_prototypes, work, compiled=True),
        }
    peers = {name: partial(make, work) for name, make in PEERS.items() if name not in missing()}
    return peers, {
        "MetaForge": partial(metaforge, work),
        "MetaForge, plan vmap": partial(metaforge, work, plan="vmap"),
        "MetaForge, plan loop": partial(metaforge, work, plan="loop"),
        "MetaForge compiled": partial(metaforge, work, compiled=True),
    }


def missing() -> list[str]:
    """Return the peers that are not installed here."""
    return [name for name in PEERS if " " not in name and find_spec(name) is None]


def _exactness(work: Any) -> dict[str, float]:
    """Return how far each gradient is from the first peer's, compiled ones where that takes seconds."""
    peers, ours = contestants(work)
    reference = next(iter(peers.values()))()()
    quick = isinstance(work, Work) and work.kind == "regression"
    makers = {who: make for who, make in {**peers, **ours}.items() if quick or "compiled" not in who}
    return {who: furthest(reference, make()()) for who, make in makers.items()}
