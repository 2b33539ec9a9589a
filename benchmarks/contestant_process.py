"""One contestant of a case of `benchmarks.speed`: it computes once for each line that it reads."""

from __future__ import annotations

import json
import sys
import time

from benchmarks.speed import CASES, contestants
from benchmarks.timing import shadows, timed
from metaforge.engine.plans import choose_threads
from metaforge.system import machine


def main(case: str, who: str) -> None:
    """Answer each line with the seconds of one call; the first answer is how long the first call took."""
    work = CASES[case][1]
    peers, ours = contestants(work)
    if who in ours:
        machine.prepare(choose_threads(None, work.spec, work.tasks))
    call = {**peers, **ours}[who]()
    begin = time.perf_counter()
    gradient = call()
    seconds = time.perf_counter() - begin
    print(json.dumps({"first": seconds, "shadows": shadows(gradient)}), flush=True)  # noqa: T201
    for _ in range(2):
        call()
    for _ in sys.stdin:
        print(json.dumps(timed(call)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
