"""`python -m benchmarks speed | limit | data | scale | table`: how fast MetaForge is, beside others and the machine."""

from __future__ import annotations

import argparse

from benchmarks import episode_rate as data
from benchmarks import machine_limit as limit
from benchmarks import performance_page as performance
from benchmarks import scale, speed


def main() -> None:
    """Run one benchmark, keep its figures as JSON, and write `docs/performance.md` anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=["speed", "limit", "data", "scale", "table"])
    parser.add_argument("--only", nargs="*", help="names of the cases to run; others keep their figures")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which all take turns")
    given = parser.parse_args()
    runs = {"speed": speed.run, "limit": limit.run, "data": data.run, "scale": scale.run}
    if given.what in runs:
        for name, figures in runs[given.what](given.only, given.rounds):
            performance.keep(given.what, name, figures)
    performance.write_table()


if __name__ == "__main__":
    main()
