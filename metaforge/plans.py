"""How a batch of tasks is to be computed: the rules behind `auto`, and what was measured for them."""

from __future__ import annotations

import math
import shutil
from typing import Literal, cast

import torch

from metaforge.errors import ConfigError
from metaforge.protocols import Learner, TaskSpec
from metaforge.sections import TrainConfig

Plan = Literal["loop", "vmap", "fold"]

# Input numbers that go through the network together, (in evaluation, in training). Measured on one AVX-512 thread,
# convolutional nets of four layers on 28 px images, 5-way 1-shot, allocator thresholds raised.
# - Evaluation, three steps, 15 queries (62,720 numbers in a task): vmap of 4 tasks 46 tasks/s, of 25 tasks 34, a loop
#   25. On vectors, vmap of 100 tasks is 30 times a loop.
# - Training, second order, 16 tasks. 5 queries (376,320 numbers in all): the whole batch 137 tasks/s, chunks of 4 104.
#   15 queries (1,003,520): the whole batch 53, chunks of 4 62. So a batch is divided from half a million numbers on.
# Elsewhere than on a CPU only memory is the limit; no speed was measured there.
_NUMBERS = {"cpu": (1 << 18, 1 << 19)}
_NUMBERS_ELSEWHERE = (1 << 22, 1 << 21)
_MOST_EVALUATED = 100


def choose_plan(learner: Learner, plan: str) -> Plan:
    """Return the plan to run: the one asked for, or under `auto` the one that measured fastest for such a learner.

    Learners that adapt in steps run under `vmap`: with the allocator's thresholds raised it took half the time of the
    loop on stride-2 convolutions and a sixth on small MLPs. The others share their weights and fold the tasks.
    """
    if plan == "fold" and learner.tags.adapts:
        raise ConfigError(
            f"plan 'fold' needs weights that all tasks share; {type(learner).__name__} adapts them for each task",
            where="engine.plan",
            remedy="use 'loop', 'vmap' or 'auto'",
        )
    if plan in ("loop", "vmap", "fold"):
        return cast(Plan, plan)
    return "vmap" if learner.tags.adapts else "fold"


def choose_chunk(spec: TaskSpec, device: torch.device, asked: int | None, *, training: bool) -> int:
    """Return how many tasks to compute together: as many as asked for, or what the size of a task allows."""
    if asked is not None:
        return asked
    task = math.prod(spec.x_shape) * spec.shape.ways * (spec.shape.shots + spec.shape.queries)
    chunk = max(_NUMBERS.get(device.type, _NUMBERS_ELSEWHERE)[training] // task, 1)
    # Progress is shown between the chunks of an evaluation, which has no batches of its own.
    return chunk if training else min(chunk, _MOST_EVALUATED)


# Compiling a step of small networks on vectors took 6 to 24 s on two busy cores, and saved seven eighths of the time of
# each step after it (1 and 5 inner steps, 25 tasks: 2.1 and 7.2 ms before): it has paid back after 3,800 steps. On
# convolutional networks it saved a quarter, and took a minute and more.
_FEW_NUMBERS, _ENOUGH_STEPS, _ENOUGH_SECONDS = 1 << 14, 5000, 120.0


def choose_compile(asked: str, spec: TaskSpec, train: TrainConfig, device: torch.device) -> bool:
    """Return whether to compile the training step: as asked for, or under `auto` where it pays back within the run."""
    if asked != "auto":
        return asked == "on"
    numbers = math.prod(spec.x_shape) * spec.shape.ways * (spec.shape.shots + spec.shape.queries) * train.tasks
    small = numbers <= _FEW_NUMBERS and device.type == "cpu"
    long = train.steps >= _ENOUGH_STEPS and (train.budget is None or train.budget >= _ENOUGH_SECONDS)
    return small and long and shutil.which("g++") is not None
