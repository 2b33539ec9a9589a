"""Detect divergence: non-finite numbers and exploding meta-gradients, with errors that say where they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from metaforge.authoring.protocols import Params
from metaforge.engine.batch import MetaStep
from metaforge.errors import DivergedError

# The running median is taken over the last REMEMBERED norms of the meta-gradient, once there are _ENOUGH of them. The
# median is at least _SMALL: near convergence the norms are almost zero, and then a hard task is not a divergence.
REMEMBERED, _ENOUGH, _SMALL = 101, 20, 1e-3


def limit(norms: Sequence[float], bound: float | None) -> float:
    """Return the norm above which a meta-gradient counts as diverged: `bound` times the running median of `norms`.

    Returns infinity if `bound` is None or there are too few norms for a median.
    """
    if bound is None or len(norms) < _ENOUGH:
        return math.inf
    return bound * max(statistics.median(norms), _SMALL)


def norm_of(tensors: Params) -> Tensor:
    """Return the norm of all floating-point tensors together, 0 if there are none; finite only if every number is."""
    # Contiguous, so that the bits of the norm do not depend on the strides, which depend on the number of processes.
    floats = [tensor.detach().contiguous() for tensor in tensors.values() if tensor.is_floating_point()]
    return torch.stack(torch._foreach_norm(floats)).norm() if floats else torch.zeros(())


def nonfinite(tensors: Params) -> list[str]:
    """Return the names of the tensors with a non-finite number."""
    if bool(norm_of(tensors).isfinite()):
        return []
    return [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest magnitude in a tensor, 0 if it is empty; unlike a norm it cannot overflow."""
    return tensor.abs().max() if tensor.numel() else torch.zeros(())


def require_finite_start(learner: str, values: Params) -> None:
    """Raise `DivergedError` if a value is not finite before the first step."""
    if bad := nonfinite(values):
        raise DivergedError(
            f"The initial value {bad[0]!r} is not finite.",
            where=f"{learner}; values that are not finite: {', '.join(bad[:5])}",
            remedy="check the options of the learner, and the initial weights of your own backbone",
        )


def values_error(learner: str, bad: Sequence[str], step: int, episodes: range) -> DivergedError:
    """Return the error for values, or tensors of the optimiser, that are not finite after an outer step."""
    return DivergedError(
        f"The value {bad[0]!r} is no longer finite after outer step {step}.",
        where=f"{learner}; values that are not finite: {', '.join(bad[:5])}; training episodes {episodes[0]} to"
        f" {episodes[-1]}",
        remedy=f"lower train.lr; the state after step {step - 1} is saved",
    )


def require_any_step(learner: str, steps: int, skipped: Sequence[int]) -> None:
    """Raise `DivergedError` if every step of a run was skipped: its values were never trained."""
    if steps and len(skipped) == steps:
        raise DivergedError(
            f"No outer step was taken: all {steps} were skipped, because their numbers are not finite.",
            where=f"{learner}; train.on_nonfinite = skip",
            remedy="train with train.on_nonfinite = stop, whose error names what is not finite in the first step",
        )


def step_error(learner: str, result: MetaStep, norm: float, limit: float, step: int, episodes: range) -> DivergedError:
    """Return the error for a step whose losses or meta-gradient are not finite, or whose meta-gradient explodes."""
    bad = [episodes[i] for i, loss in enumerate(result.losses.tolist()) if not math.isfinite(loss)]
    worst = next(iter(nonfinite(result.grads)), None)
    what = f"The loss or the meta-gradient is no longer finite at outer step {step}."
    where = f"{learner}; training episodes {episodes[0]} to {episodes[-1]}"
    where += f", with a non-finite loss: {bad or 'none'}; first non-finite gradient: {worst or 'none'}"
    if not bad and worst is None:
        what = f"The meta-gradient explodes to a norm of {norm:.3g} at outer step {step}; {limit:.3g} is the limit."
        if not math.isfinite(norm):
            what = f"The norm of the meta-gradient overflows at outer step {step}, though every number is finite."
        size = torch.Tensor.norm if math.isfinite(norm) else _largest
        largest = max(result.grads, key=lambda name: float(size(result.grads[name])))
        where = f"{learner}; training episodes {episodes[0]} to {episodes[-1]}; largest gradient: {largest}"
    return DivergedError(
        what,
        where=where,
        remedy="lower the inner or the outer learning rate, or set train.clip (train.divergence is the limit in"
        f" multiples of the running median); the state after step {step - 1} is saved",
    )
