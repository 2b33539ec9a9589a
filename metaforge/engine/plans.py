"""How a batch of tasks is to be computed: the rules behind `auto`, and what was measured for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch.overrides import TorchFunctionMode

from metaforge.authoring.protocols import Key, Learner, Params, Task, TaskSpec
from metaforge.errors import ConfigError
from metaforge.system import machine

Plan = Literal["loop", "vmap", "fold"]

_FUSED = ("batch_norm", "layer_norm", "instance_norm", "rms_norm")

# Input numbers that go through the network together, (in evaluation, in training). Measured on one AVX-512 thread,
# convolutional nets of four layers on 28 px images, 5-way 1-shot, allocator thresholds raised.
# - Evaluation, three steps, 15 queries (62,720 numbers in a task): vmap of 4 tasks 46 tasks/s, of 25 tasks 34, a loop
#   25. On vectors, vmap of 100 tasks is 30 times a loop.
# - Training, second order, 16 tasks. 5 queries (376,320 numbers in all): the whole batch 137 tasks/s, chunks of 4 104.
#   15 queries (1,003,520): the whole batch 53, chunks of 4 62. So a batch is divided from half a million numbers on.
# Elsewhere than on a CPU only memory is the limit; no speed was measured there.
# - Compiled, on two threads, 5 queries: 16 tasks at once 68 ms, 8 at once 62, 4 at once 64. The compiler leaves fewer
#   passes over memory, and those are quicker where a chunk stays in the cache.
_NUMBERS = {"cpu": (1 << 18, 1 << 19)}
_NUMBERS_ELSEWHERE = (1 << 22, 1 << 21)
_MOST_EVALUATED = 100


def choose_plan(learner: Learner, plan: str, fused_norms: Sequence[str] = ()) -> Plan:
    """Return the plan to run: the one asked for, or under `auto` the one that measured fastest for such a learner.

    That is `fold`, unless the learner adapts through torch's own fused norms (named in `fused_norms`), whose second
    derivatives are wrong in that order: then `vmap`. Raises `ConfigError` where such a learner is asked to fold.
    """
    wrong = learner.tags.adapts and fused_norms
    if plan == "fold" and wrong:
        raise ConfigError(
            f"Plan 'fold' gives wrong meta-gradients with {fused_norms[0]}, which {type(learner).__name__} adapts"
            " through.",
            where="engine.plan",
            remedy="use 'vmap', 'loop' or 'auto', or norm layers of torch.nn, which MetaForge exchanges for its own",
        )
    if plan in ("loop", "vmap", "fold"):
        return cast(Plan, plan)
    return "vmap" if wrong else "fold"


def fused_norms(learner: Learner, values: Params, task: Task, key: Key) -> list[str]:
    """Return the names of torch's own norm functions that the loss of one task calls."""
    seen = _FusedNorms()
    with seen, torch.no_grad():
        learner.loss(values, task, key)
    return sorted(seen.found)


class _FusedNorms(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name.removeprefix("native_") in _FUSED:
            self.found.add(name)
        return function(*arguments, **(named or {}))


def choose_chunk(
    spec: TaskSpec, device: torch.device, asked: int | None, *, training: bool, compiled: bool = False
) -> int:
    """Return how many tasks to compute together: as many as asked for, or what the size of a task allows."""
    if asked is not None:
        return asked
    most = _NUMBERS.get(device.type, _NUMBERS_ELSEWHERE)[training and not compiled]
    chunk = max(most // _numbers(spec, 1), 1)
    # Progress is shown between the chunks of an evaluation, which has no batches of its own.
    return chunk if training else min(chunk, _MOST_EVALUATED)


def even_chunk(most: int, groups: Sequence[int]) -> int:
    """Return a size of at most `most` that divides groups of tasks without a rest, if there is one of at least half.

    A piece of another size is compiled by itself.
    """
    sizes = range(most, (most - 1) // 2, -1)
    return next((size for size in sizes if all(group % size == 0 for group in groups)), most)


# Compiling a step of small networks on vectors took 6 to 24 s on two busy cores, and saved seven eighths of the time of
# each step after it (1 and 5 inner steps, 25 tasks: 2.1 and 7.2 ms before): it has paid back after 3,800 steps. On
# convolutional networks it saves a third to two thirds and takes 20 s to minutes, the more the more inner steps there
# are: there it is the user's choice.
_FEW_NUMBERS, _ENOUGH_STEPS, _ENOUGH_SECONDS = 1 << 14, 5000, 120.0


def choose_threads(asked: int | None, spec: TaskSpec, tasks: int) -> int | None:
    """Return the number of threads asked for; else one for a step too small to share, None for torch's own choice.

    A compiled step of 25 regression tasks with 5 inner steps took 1.0 ms on one thread and 0.8 ms on two; beside
    another program on the same two cores 1.05 ms on one, and more than 20 ms on two.
    """
    return 1 if asked is None and _numbers(spec, tasks) <= _FEW_NUMBERS else asked


def choose_compile(
    asked: str, spec: TaskSpec, device: torch.device, *, tasks: int, steps: int, budget: float | None = None
) -> bool:
    """Return whether to compile the training step: as asked for, or under `auto` where it pays back within the run."""
    if asked != "auto":
        return asked == "on"
    small = _numbers(spec, tasks) <= _FEW_NUMBERS and device.type == "cpu"
    long = steps >= _ENOUGH_STEPS and (budget is None or budget >= _ENOUGH_SECONDS)
    return small and long and machine.has_compiler()


def _numbers(spec: TaskSpec, tasks: int) -> int:
    """Return how many input numbers there are in a batch of tasks."""
    return math.prod(spec.x_shape) * spec.shape.ways * (spec.shape.shots + spec.shape.queries) * tasks
