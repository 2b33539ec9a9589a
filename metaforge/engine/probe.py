"""What computing the loss of one task shows before a training: which functions it calls, and whether `vmap` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from metaforge.authoring.functional import one_task
from metaforge.authoring.protocols import Key, Learner, Params, Task


class Probe(NamedTuple):
    """What the loss of a learner needs of a plan.

    Attributes:
        fused_norms: The names of PyTorch's fused norm functions that it calls.
        not_batched_because: Why it cannot be computed under `vmap`; empty if it can.
    """

    fused_norms: tuple[str, ...] = ()
    not_batched_because: str = ""


def probe_loss(learner: Learner, values: Params, tasks: Task, key: Key, *, batched: bool = True) -> Probe:
    """Compute the loss of one task by itself, and then under `vmap`.

    Args:
        learner: The learner.
        values: Its values.
        tasks: A batch of one task; every tensor has a leading task dimension, `[1, ...]`.
        key: The key of the task.
        batched: Whether to compute it under `vmap` at all.
    """
    names = fused_norms(learner, values, one_task(tasks), key) if learner.tags.adapts else ()

    def one(task: Task, key: Key) -> Key:
        learner.loss(values, task, key)  # What it returns is checked in the first step.
        return key

    def compute() -> None:
        with torch.no_grad():
            vmap(one)(tasks, key.unsqueeze(0))

    return Probe(names, reason_not_to_batch(compute) if batched else "")


def reason_not_to_batch(compute: Callable[[], object]) -> str:
    """Return why a computation under `vmap` fails, in one line; empty if it does not.

    Args:
        compute: Runs the computation.
    """
    try:
        compute()
    except RuntimeError as error:
        return reason_of(error)
    return ""


def reason_of(error: RuntimeError) -> str:
    """Return the first sentence of an error of torch, and in which layer of a network it was raised."""
    reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200]
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f"{reason} ({notes})" if notes else reason


def fused_norms(learner: Learner, values: Params, task: Task, key: Key) -> tuple[str, ...]:
    """Return the names of PyTorch's fused norm functions that are called, anywhere, by the loss of one task."""
    calls = _FusedNormCalls()
    with calls, torch.no_grad():
        learner.loss(values, task, key)
    return tuple(sorted(calls.names))


_FUSED_NORMS = ("batch_norm", "layer_norm", "instance_norm", "rms_norm")


class _FusedNormCalls(TorchFunctionMode):
    """Records the names of the fused norm functions that are called within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name.removeprefix("native_") in _FUSED_NORMS:
            self.names.add(name)
        return function(*arguments, **(named or {}))
