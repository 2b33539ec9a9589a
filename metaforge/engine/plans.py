"""The rules behind `auto`: which plan, chunk size, compilation and number of threads a training step uses, and why.

`decide` applies all of them. Each rule is a function below it; the measurements are in the comment above the function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch

from metaforge.authoring.protocols import Learner, Regularizer, TaskSpec
from metaforge.engine.probe import Probe
from metaforge.errors import ConfigError
from metaforge.system import machine

Plan = Literal["loop", "vmap", "fold"]


class Workload(NamedTuple):
    """The size of a training step and the length of the training.

    Attributes:
        spec: The spec of the training tasks.
        device: The device of the computation.
        tasks: The number of tasks of an outer step, over all ranks.
        groups: The number of tasks in each group that this rank computes.
        steps: The number of batches: of outer steps, times the batches of each.
        budget: The longest duration of the training in seconds; None for no limit.
        examples: The number of support and query examples of a task whose shape varies; None if `spec` has its shape.
    """

    spec: TaskSpec
    device: torch.device
    tasks: int
    groups: tuple[int, ...]
    steps: int
    budget: float | None = None
    examples: int | None = None


class Requested(NamedTuple):
    """The user's settings of `[engine]`; `auto` and None leave the choice to the rules."""

    plan: str = "auto"
    chunk: int | None = None
    compile: str = "auto"
    threads: int | None = None


AUTO = Requested()
PLAIN = Probe()


class Decision(NamedTuple):
    """How a training step is computed.

    Attributes:
        plan: The plan.
        chunk: The number of tasks computed together.
        compiled: Whether the step is compiled.
        threads: The number of CPU threads; None for PyTorch's default.
        not_compiled_because: Why the step is not compiled; empty if it is.
    """

    plan: Plan
    chunk: int
    compiled: bool
    threads: int | None
    not_compiled_because: str = ""


def decide(
    learner: Learner,
    workload: Workload,
    requested: Requested = AUTO,
    *,
    probe: Probe = PLAIN,
    regularizers: Sequence[Regularizer] = (),
) -> Decision:
    """Return how to compute a training step: the user's settings, completed by the rules of this module.

    Args:
        learner: The learner to train.
        workload: The size of a step and the length of the training.
        requested: The user's settings.
        probe: What the learner's loss needs of a plan.
        regularizers: The regularizers whose terms are part of the outer loss.

    Returns:
        The decision, with the reason if the step is not compiled.

    Raises:
        ConfigError: The settings demand a plan that gives wrong gradients for this learner, or a compiled step for
            varied tasks or with a regularizer that does not allow one.
    """
    plan = choose_plan(learner, requested.plan, probe)
    reason = reason_not_to_compile(requested._replace(plan=plan), workload, regularizers, probe)
    compiled = not reason
    examples = workload.examples
    chunk = choose_chunk(
        workload.spec, workload.device, requested.chunk, training=True, compiled=compiled, examples=examples
    )
    chunk = min(chunk, max(workload.groups))
    if compiled and combining_regularizers(regularizers, workload.tasks):
        chunk = workload.tasks
    elif compiled and requested.chunk is None:
        chunk = even_chunk(chunk, workload.groups)
    threads = choose_threads(requested.threads, workload.spec, workload.tasks, examples)
    return Decision(plan, chunk, compiled, threads, reason)


def choose_plan(learner: Learner, plan: str, probe: Probe = PLAIN) -> Plan:
    """Return the plan to use: the requested one, or for `auto` the one that was measured to be fastest.

    That is `fold`. It is `vmap` for a learner that adapts through PyTorch's fused norm functions, because their second
    derivatives are wrong under `fold`, and `loop` for one whose loss `vmap` cannot run.

    Args:
        learner: The learner to train.
        plan: The requested plan, or `auto`.
        probe: What the learner's loss needs of a plan.

    Raises:
        ConfigError: `fold` is requested for a learner that adapts through fused norm functions.
    """
    wrong = learner.tags.adapts and probe.fused_norms
    if plan == "fold" and wrong:
        raise ConfigError(
            f"Plan 'fold' gives wrong meta-gradients with {probe.fused_norms[0]}, which {type(learner).__name__} adapts"
            " through.",
            where="engine.plan",
            remedy="use 'vmap', 'loop' or 'auto', or norm layers of torch.nn, which MetaForge replaces by its own",
        )
    if plan in ("loop", "vmap", "fold"):
        return cast(Plan, plan)
    if probe.not_batched_because:
        return "loop"
    return "vmap" if wrong else "fold"


# The largest number of input elements (`numel`) in a chunk: (in evaluation, in training). Measured on one AVX-512
# thread, with convolutional networks of four layers on 28 px images, 5-way 1-shot, with the allocator settings of
# `metaforge.system.machine.prepare`.
# - Evaluation, three steps, 15 queries (62,720 elements in a task): chunks of 4 tasks 46 tasks/s, chunks of 25 tasks
#   34 tasks/s, `loop` 25 tasks/s. On vectors, chunks of 100 tasks are 30 times as fast as `loop`.
# - Training, second order, 16 tasks. With 5 queries (376,320 elements in the batch): the whole batch 137 tasks/s,
#   chunks of 4 tasks 104 tasks/s. With 15 queries (1,003,520 elements): the whole batch 53 tasks/s, chunks of 4 tasks
#   62 tasks/s. So a batch of more than half a million elements is divided.
# - Compiled training, two threads, 5 queries: chunks of 16 tasks 68 ms, of 8 tasks 62 ms, of 4 tasks 64 ms. A compiled
#   step makes fewer passes over memory, and these are faster if a chunk fits into the cache. So its limit is that of
#   evaluation.
# On devices other than the CPU the limits only bound memory; no speed was measured there.
_NUMBERS = {"cpu": (1 << 18, 1 << 19)}
_NUMBERS_ELSEWHERE = (1 << 22, 1 << 21)
_MOST_EVALUATED = 100


def choose_chunk(
    spec: TaskSpec,
    device: torch.device,
    requested: int | None,
    *,
    training: bool,
    compiled: bool = False,
    examples: int | None = None,
) -> int:
    """Return how many tasks to compute together: the requested number, or what the size of a task allows.

    Args:
        spec: The spec of the tasks.
        device: The device of the computation.
        requested: The requested number; None leaves it to the rule.
        training: Whether the chunks are for training; otherwise they are for evaluation.
        compiled: Whether the training step is compiled.
        examples: The number of examples of a task whose shape varies; None if `spec` has its shape.
    """
    if requested is not None:
        return requested
    most = _NUMBERS.get(device.type, _NUMBERS_ELSEWHERE)[training and not compiled]
    chunk = max(most // _input_numbers(spec, 1, examples), 1)
    # An evaluation has no batches; its progress is shown between chunks, so they must not be too large.
    return chunk if training else min(chunk, _MOST_EVALUATED)


# Each chunk size is compiled separately, which takes as long as the first compilation. So a somewhat smaller chunk size
# is used if all chunks then have the same size.
def even_chunk(most: int, groups: Sequence[int]) -> int:
    """Return a chunk size of at least half of `most` that divides every group without remainder; else `most`."""
    sizes = range(most, (most - 1) // 2, -1)
    return next((size for size in sizes if all(group % size == 0 for group in groups)), most)


def combining_regularizers(regularizers: Sequence[Regularizer], tasks: int) -> list[Regularizer]:
    """Return the regularizers that have a `combine` term of the losses of a batch of `tasks` tasks."""
    return [
        r for r in regularizers if r.combine(torch.ones(tasks), dict.fromkeys(r.terms, torch.ones(tasks))) is not None
    ]


# Small networks on vectors, 25 tasks, two busy cores: compiling a step took 6 to 24 s. It saved seven eighths of the
# time of each later step (in eager mode 2.1 ms with 1 inner step, 7.2 ms with 5), so it pays off after 3,800 steps. On
# convolutional networks it saves a third to two thirds of the time, but takes 20 s to minutes, the longer the more
# inner steps there are. So there it is not automatic.
_FEW_NUMBERS, _ENOUGH_STEPS, _ENOUGH_SECONDS = 1 << 14, 5000, 120.0


def reason_not_to_compile(
    requested: Requested, workload: Workload, regularizers: Sequence[Regularizer] = (), probe: Probe = PLAIN
) -> str:
    """Return why the training step is not compiled, in a few words; an empty string if it is compiled.

    Args:
        requested: The user's settings; `compile` is `on`, `off`, or `auto`, which compiles where that saves time within
            the run.
        workload: The size of a step and the length of the training.
        regularizers: The regularizers whose terms are part of the outer loss.
        probe: What the learner's loss needs of a plan.

    Raises:
        ConfigError: `on` is requested, but the shape of tasks varies, or a regularizer weighs each task by the losses
            of all tasks, which are not computed together.
    """
    varied = workload.examples is not None
    if varied and requested.compile == "on":
        raise ConfigError(
            "A step on tasks of varied shapes cannot be compiled: nearly every task would be compiled anew.",
            where="engine.compile",
            remedy="set engine.compile to off, or train.sampler to fixed",
        )
    combining = combining_regularizers(regularizers, workload.tasks)
    together = workload.groups == (workload.tasks,) and (requested.chunk or workload.tasks) >= workload.tasks
    divided = bool(combining) and (requested.plan == "loop" or not together)
    if divided and requested.compile == "on":
        raise ConfigError(
            f"A step with {type(combining[0]).__name__} cannot be compiled like this: it weighs each task by the losses"
            " of all tasks, which one process has to compute together.",
            where="engine.compile",
            remedy="set engine.compile to off, or leave out engine.chunk and engine.plan, and use one process",
        )
    if requested.compile == "on":
        return ""
    if requested.compile == "off":
        return "engine.compile is off"
    reasons = {
        "the shape of tasks varies": varied,
        "compilation is not automatic on this device": workload.device.type != "cpu",
        "compilation is not automatic for networks on images or large batches": (
            _input_numbers(workload.spec, workload.tasks, workload.examples) > _FEW_NUMBERS
        ),
        "the run is too short to save the time of compilation": (
            workload.steps < _ENOUGH_STEPS or (workload.budget is not None and workload.budget < _ENOUGH_SECONDS)
        ),
        "the loss of several tasks cannot be computed in one call": bool(probe.not_batched_because),
        "there is no C++ compiler": not machine.has_compiler(),
        "a regularizer weighs each task by the losses of all tasks, which are not computed together": divided,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


# A compiled step of 25 regression tasks with 5 inner steps took 1.0 ms on one thread and 0.8 ms on two threads. While
# another program used the same two cores, it took 1.05 ms on one thread and more than 20 ms on two.
def choose_threads(requested: int | None, spec: TaskSpec, tasks: int, examples: int | None = None) -> int | None:
    """Return the requested number of CPU threads; by default 1 for a small step, else None (PyTorch's default).

    Args:
        requested: The requested number; None leaves it to the rule.
        spec: The spec of the training tasks.
        tasks: The number of tasks of an outer step.
        examples: The number of examples of a task whose shape varies; None if `spec` has its shape.
    """
    return 1 if requested is None and _input_numbers(spec, tasks, examples) <= _FEW_NUMBERS else requested


def _input_numbers(spec: TaskSpec, tasks: int, examples: int | None) -> int:
    """Return how many elements the inputs of a batch of tasks have, support and query sets together."""
    if examples is None:
        examples = spec.shape.ways * (spec.shape.shots + spec.shape.queries)
    return math.prod(spec.x_shape) * examples * tasks
