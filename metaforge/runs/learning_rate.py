"""What the learning rate of the outer optimiser is multiplied by in a step: the schedule, and the warm-up before it."""

from __future__ import annotations

import math

from metaforge.authoring.protocols import Schedule
from metaforge.errors import ContractError


def rate_factor(schedule: Schedule, warmup: int, step: int, share: float) -> float:
    """Return the factor of the next outer step.

    In the first `warmup` steps the factor of the schedule is multiplied by 1, 2, … over `warmup + 1`.

    Args:
        schedule: The schedule.
        warmup: The number of steps of the warm-up.
        step: The number of outer steps done.
        share: The fraction of the run that is done, in [0, 1].

    Raises:
        ContractError: The schedule returns no finite number of at least 0.
    """
    factor = schedule.factor(step, share)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < math.inf:
        raise ContractError(f"factor returns {factor!r}, not a finite number of at least 0")
    return float(factor) * (step + 1) / (warmup + 1) if step < warmup else float(factor)
