"""Comparisons of MetaForge with others: gradients in float64 first, then the times of each in its own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.metaforge_step import Gradients
from benchmarks.timing import (
    log,
    median,
    projection_difference,
    ratio,
    relative_difference,
    started_contestants,
    time_in_turns,
)

Make = Callable[[], Gradients]
# The makers of the gradients of the peers and of MetaForge, by name.
Contestants = Callable[[Any], tuple[Mapping[str, Make], Mapping[str, Make]]]

# The largest relative difference of gradients in float64 that counts as equal.
EQUAL = 1e-9


class Case(NamedTuple):
    """One comparison; the goals are speeds of MetaForge relative to the fastest other contestant.

    The work is a dataclass with the fields `tasks` and `dtype`, and the attributes `spec` and `quick`.
    """

    title: str
    work: Any
    compiled_goal: float | None
    eager_goal: float | None


def compare(
    group: str, cases: Mapping[str, Case], contestants: Contestants, only: Sequence[str] | None, rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and record of each case of a group.

    Args:
        group: The name of the group in `benchmarks.contestant_process`.
        cases: The cases by name.
        contestants: Makes the contestants of a work.
        only: The names of the cases to compare; None for all.
        rounds: In how many rounds every contestant is timed.

    Raises:
        SystemExit: Gradients differ, so that the contestants do not do the same work.
    """
    for name, case in cases.items():
        if only and name not in only:
            continue
        log(name)
        peers, ours = contestants(case.work)
        errors = errors_in_float64(case.work, contestants)
        if unequal := [who for who, error in errors.items() if not error < EQUAL]:
            raise SystemExit(f"{name}: the gradients of {', '.join(unequal)} differ from those of the others: {errors}")
        with started_contestants(group, name, [*peers, *ours]) as running:
            first = {who: contestant.first for who, contestant in running.items()}
            reference = next(iter(running.values())).projections
            differences = {
                who: projection_difference(reference, contestant.projections) for who, contestant in running.items()
            }
            times = time_in_turns({who: contestant.turn for who, contestant in running.items()}, rounds)
        best = min(peers, key=lambda who: median(times[who]))
        rows = []
        for who, seconds in times.items():
            goal = (case.compiled_goal if "compiled" in who else case.eager_goal) if who in ours else None
            rows.append(
                {
                    "who": who,
                    "ms": 1e3 * median(seconds),
                    "tasks/s": case.work.tasks / median(seconds),
                    f"times {best}": ratio(times[best], seconds),
                    "goal": "" if goal is None else f"{goal:g}",
                    "gradient differs": f"{differences[who]:.0e}",
                    "in float64": f"{errors[who]:.0e}" if who in errors else "",
                    "first step, s": first[who],
                }
            )
        yield name, {"title": case.title, "rows": rows, "seconds": times}


def errors_in_float64(work: Any, contestants: Contestants) -> dict[str, float]:
    """Return the relative difference of each gradient to that of the first peer, in float64 on two tasks.

    Compiled contestants are included only where a step is compiled within seconds.
    """
    peers, ours = contestants(replace(work, dtype=torch.float64, tasks=2))
    reference = next(iter(peers.values()))()()
    makers = {name: make for name, make in {**peers, **ours}.items() if work.quick or "compiled" not in name}
    return {name: relative_difference(reference, make()()) for name, make in makers.items()}
