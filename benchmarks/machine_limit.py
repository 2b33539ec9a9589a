"""The highest rates of this machine in products, copies and convolutions, and the share that training steps reach."""

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
from benchmarks.timing import median, seconds_per_call, time_in_turns
from metaforge.system import machine

# The four convolutions of each network, for the support and query set of one task: (images, input channels, output
# channels, side of the image in pixels, stride).
LAYERS = {
    "stride": [(30, 1, 64, 28, 2), (30, 64, 64, 14, 2), (30, 64, 64, 7, 2), (30, 64, 64, 4, 2)],
    "pool": [(80, 1, 64, 28, 1), (80, 64, 64, 14, 1), (80, 64, 64, 7, 1), (80, 64, 64, 3, 1)],
}


def run(only: Sequence[str] | None, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the record of the limits, and that of the share that meta-gradients reach."""
    machine.prepare(None)
    limits = _limits(rounds)
    rows = [{"what": operation, "rate": f"{rate:.4g} {unit}"} for operation, (rate, unit) in limits.items()]
    yield "ceilings", {"title": "Limits", "rows": rows, "figures": {name: rate for name, (rate, _) in limits.items()}}
    rows = []
    for network, work in (("stride", STRIDE), ("pool", POOL)):
        flops = _flops(plain_loop(work)) / work.tasks
        limit = limits[f"convolutions of the {network} network, forward and backward"][0] * 1e9
        calls = {"a plain loop": plain_loop(work), "MetaForge": metaforge(work)}
        calls["MetaForge compiled"] = metaforge(work, compiled=True)
        for call in calls.values():
            call()
        turns = {name: partial(seconds_per_call, call) for name, call in calls.items()}
        for name, seconds in time_in_turns(turns, rounds).items():
            rate = flops * work.tasks / median(seconds)
            row = {"work": f"{network}, {work.tasks} tasks, {work.steps} inner steps", "who": name}
            row |= {"GFLOP per task": f"{flops / 1e9:.3g}", "tasks/s": f"{work.tasks / median(seconds):.4g}"}
            row |= {"tasks/s at the ceiling": f"{limit / flops:.4g}", "reached": f"{100 * rate / limit:.0f} %"}
            rows.append(row)
    yield "reached", {"title": "Share of the limit of convolutions", "rows": rows}


def _limits(rounds: int) -> dict[str, tuple[float, str]]:
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source, target = torch.randn(1 << 24), torch.empty(1 << 24)
    rates = {
        "product of 1024 x 1024": (2 * 1024**3 / _fastest(lambda: left @ right, rounds) / 1e9, "GFLOP/s"),
        "copy of 64 MiB": (2 * 4 * (1 << 24) / _fastest(lambda: target.copy_(source), rounds) / 1e9, "GB/s"),
    }
    for network, layers in LAYERS.items():
        work, seconds = 0.0, 0.0
        for images, channels_in, channels_out, side, stride in layers:
            x = torch.randn(images, channels_in, side, side, requires_grad=channels_in > 1)
            weight = torch.randn(channels_out, channels_in, 3, 3, requires_grad=True)

            def step(x: torch.Tensor = x, weight: torch.Tensor = weight, stride: int = stride) -> None:
                y = F.conv2d(x, weight, stride=stride, padding=1)
                torch.autograd.grad(y, [tensor for tensor in (x, weight) if tensor.requires_grad], torch.ones_like(y))

            work += _flops(step)
            seconds += _fastest(step, rounds)
        rates[f"convolutions of the {network} network, forward and backward"] = (work / seconds / 1e9, "GFLOP/s")
    return rates


def _flops(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _fastest(call: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest of many calls: a limit is the best that the machine can do."""
    call()
    best, end = float("inf"), time.perf_counter() + 0.3 * rounds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
