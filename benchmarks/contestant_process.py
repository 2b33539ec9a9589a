"""The process of one contestant of a case of a group: it takes one turn for each line on stdin."""

from __future__ import annotations

import json
import sys
import time

from benchmarks import learners, speed
from benchmarks.timing import projections, seconds_per_call
from metaforge.engine.plans import choose_threads
from metaforge.system import machine

GROUPS = {"speed": (speed.CASES, speed.contestants), "learners": (learners.CASES, learners.contestants)}


def main(group: str, case: str, name: str) -> None:
    """Print the seconds of the first call and the projections of its gradient, then the seconds of a call per line."""
    cases, contestants = GROUPS[group]
    work = cases[case].work
    peers, ours = contestants(work)
    if name in ours:
        machine.prepare(choose_threads(None, work.spec, work.tasks))
    call = {**peers, **ours}[name]()
    start = time.perf_counter()
    gradient = call()
    seconds = time.perf_counter() - start
    print(json.dumps({"first": seconds, "projections": projections(gradient)}), flush=True)  # noqa: T201
    for _ in range(2):
        call()
    for _ in sys.stdin:
        print(json.dumps(seconds_per_call(call)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
