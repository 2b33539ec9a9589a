"""The memory that tensors take during a call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch


def added_peak(call: Callable[[], Any]) -> int:
    """Return the peak of additional tensor memory in bytes during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watch:
        call()
    events = [one for one in watch.profiler.kineto_results.events() if one.name() == "[memory]"]
    sizes = itertools.accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns()))
    return max(sizes)
