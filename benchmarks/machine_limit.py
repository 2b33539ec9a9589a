"""What this machine can do at most: products, convolutions at the shapes of the benchmarks, copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import metaforge, plain_loop
from benchmarks.speed import POOL, STRIDE
from benchmarks.timing import in_turns, median, timed
from metaforge.system import machine

# (images, channels in, channels out, side, stride): the four layers of each network, support and query of a task.
LAYERS = {
    "stride": [(30, 1, 64, 28, 2), (30, 64, 64, 14, 2), (30, 64, 64, 7, 2), (30, 64, 64, 4, 2)],
    "pool": [(80, 1, 64, 28, 1), (80, 64, 64, 14, 1), (80, 64, 64, 7, 1), (80, 64, 64, 3, 1)],
}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ceilings, and how much of them the meta-gradients reach."""
    machine.prepare(None)
    ceilings = _ceilings(rounds)
    rows = [{"what": name, "rate": f"{rate:.4g} {unit}"} for name, (rate, unit) in ceilings.items()]
    yield (
        "ceilings",
        {"title": "Ceilings", "rows": rows, "figures": {name: rate for name, (rate, _) in ceilings.items()}},
    )
    rows = []
    for name, work in (("stride", STRIDE), ("pool", POOL)):
        flops = _flops(plain_loop(work)) / work.tasks
        ceiling = ceilings[f"convolutions of the {name} network, forward and backward"][0] * 1e9
        calls = {"a plain loop": plain_loop(work), "MetaForge": metaforge(work)}
        calls["MetaForge compiled"] = metaforge(work, compiled=True)
        for call in calls.values():
            call()
        for who, seconds in in_turns({who: partial(timed, call) for who, call in calls.items()}, rounds).items():
            rate = flops * work.tasks / median(seconds)
            row = {"work": f"{name}, {work.tasks} tasks, {work.steps} inner steps", "who": who}
            row |= {"GFLOP per task": f"{flops / 1e9:.3g}", "tasks/s": f"{work.tasks / median(seconds):.4g}"}
            row |= {"tasks/s at the ceiling": f"{ceiling / flops:.4g}", "reached": f"{100 * rate / ceiling:.0f} %"}
            rows.append(row)
    note = "Operations are those of the plain loop's convolutions and products, counted by torch."
    yield "reached", {"title": "What is reached of the convolutions' ceiling", "rows": rows, "notes": [note]}


def _ceilings(rounds: int) -> dict[str, tuple[float, str]]:
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source, target = torch.randn(1 << 24), torch.empty(1 << 24)
    found = {
        "product of 1024 x 1024": (2 * 1024**3 / _fastest(lambda: left @ right, rounds) / 1e9, "GFLOP/s"),
        "copy of 64 MiB": (2 * 4 * (1 << 24) / _fastest(lambda: target.copy_(source), rounds) / 1e9, "GB/s"),
    }
    for name, layers in LAYERS.items():
        work, seconds = 0.0, 0.0
        for images, inside, outside, side, stride in layers:
            x = torch.randn(images, inside, side, side, requires_grad=inside > 1)
            weight = torch.randn(outside, inside, 3, 3, requires_grad=True)

            def step(x: torch.Tensor = x, weight: torch.Tensor = weight, stride: int = stride) -> None:
                y = F.conv2d(x, weight, stride=stride, padding=1)
                torch.autograd.grad(y, [one for one in (x, weight) if one.requires_grad], torch.ones_like(y))

            work += _flops(step)
            seconds += _fastest(step, rounds)
        found[f"convolutions of the {name} network, forward and backward"] = (work / seconds / 1e9, "GFLOP/s")
    return found


def _flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _fastest(call: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest of many calls: a ceiling is what can be reached."""
    call()
    best, end = float("inf"), time.perf_counter() + 0.3 * rounds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    return best
