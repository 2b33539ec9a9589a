"""`python -m benchmarks speed | learners | limit | data | scale | table`: speed beside others and the machine."""

from __future__ import annotations

import argparse

from benchmarks import episode_rate, learners, machine_limit, performance_page, scale, speed

RUNS = {
    "speed": speed.run,
    "learners": learners.run,
    "limit": machine_limit.run,
    "data": episode_rate.run,
    "scale": scale.run,
}


def main() -> None:
    """Run one benchmark, write its records as JSON, and write `docs/performance.md` from all records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*RUNS, "table"])
    parser.add_argument("--only", nargs="*", help="names of the cases to run; the records of others stay")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which every contestant is timed once")
    options = parser.parse_args()
    if options.what in RUNS:
        for name, record in RUNS[options.what](options.only, options.rounds):
            performance_page.write_record(options.what, name, record)
    performance_page.write_page()


if __name__ == "__main__":
    main()
