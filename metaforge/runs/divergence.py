"""Whether a run's numbers are still sound, and errors that say where they are not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from metaforge.authoring.protocols import Params
from metaforge.engine.batch import MetaStep
from metaforge.errors import DivergedError

# How many of the meta-gradient's norms make the running median, how many are needed, and the least that it counts as:
# once everything is learned the norms are almost zero, and one hard task is no divergence.
REMEMBERED, _ENOUGH, _SMALL = 101, 20, 1e-3


def limit(norms: Sequence[float], bound: float | None) -> float:
    """Return the norm above which a meta-gradient has diverged, given the last ones; infinity where that is open."""
    if bound is None or len(norms) < _ENOUGH:
        return math.inf
    return bound * max(statistics.median(norms), _SMALL)


def norm_of(tensors: Params) -> Tensor:
    """Return the norm of all tensors together, 0 of none: finite only if every number is."""
    # The same bits however the numbers lie in memory, which several processes and one do not share.
    floats = [tensor.detach().contiguous() for tensor in tensors.values() if tensor.is_floating_point()]
    return torch.stack(torch._foreach_norm(floats)).norm() if floats else torch.zeros(())


def nonfinite(tensors: Params) -> list[str]:
    """Return the names of the tensors that hold a number which is not finite."""
    if bool(norm_of(tensors).isfinite()):
        return []
    return [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest magnitude in a tensor, 0 of none: unlike a norm it does not overflow."""
    return tensor.abs().max() if tensor.numel() else torch.zeros(())


def initial_error(who: str, bad: Sequence[str]) -> DivergedError:
    """Return the error for initial values that are not finite."""
    return DivergedError(
        f"The initial value {bad[0]!r} is not finite.",
        where=f"{who}; values that are not finite: {', '.join(bad[:5])}",
        remedy="check the learner's options, and the initial weights of a backbone of your own",
    )


def values_error(who: str, bad: Sequence[str], step: int, episodes: range) -> DivergedError:
    """Return the error for values, or numbers of the optimiser's, that an outer step has spoilt."""
    return DivergedError(
        f"The value {bad[0]!r} is no longer finite after outer step {step}.",
        where=f"{who}; values that are not finite: {', '.join(bad[:5])}; training episodes {episodes[0]} to"
        f" {episodes[-1]}",
        remedy=f"lower train.lr; the state after step {step - 1} is saved",
    )


def require_any_step(who: str, steps: int, skipped: Sequence[int]) -> None:
    """Raise `DivergedError` where every step of a run was left out: what it leaves was never trained."""
    if steps and len(skipped) == steps:
        raise DivergedError(
            f"No outer step was taken: all {steps} were left out, because their numbers are not finite.",
            where=f"{who}; train.on_nonfinite = skip",
            remedy="train with train.on_nonfinite = stop, which tells what is not finite in the first of them",
        )


def step_error(who: str, result: MetaStep, norm: float, limit: float, step: int, episodes: range) -> DivergedError:
    """Return the error for a loss or a meta-gradient that is not finite, or far longer than those before it."""
    bad = [episodes[i] for i, loss in enumerate(result.losses.tolist()) if not math.isfinite(loss)]
    worst = next(iter(nonfinite(result.grads)), None)
    what = f"The loss or the meta-gradient is no longer finite at outer step {step}."
    where = f"{who}; training episodes {episodes[0]} to {episodes[-1]}"
    where += f", with a bad loss: {bad or 'none'}; first bad gradient: {worst or 'none'}"
    if not bad and worst is None:
        what = f"The meta-gradient has leapt to a norm of {norm:.3g} at outer step {step}; {limit:.3g} is the limit."
        if not math.isfinite(norm):
            what = f"The norm of the meta-gradient overflows at outer step {step}, though every number is finite."
        size = torch.Tensor.norm if math.isfinite(norm) else _largest
        longest = max(result.grads, key=lambda name: float(size(result.grads[name])))
        where = f"{who}; training episodes {episodes[0]} to {episodes[-1]}; longest gradient: {longest}"
    return DivergedError(
        what,
        where=where,
        remedy="lower the inner or the outer learning rate, or set train.clip (train.divergence is the limit in"
        f" multiples of the running median); the state after step {step - 1} is saved",
    )
