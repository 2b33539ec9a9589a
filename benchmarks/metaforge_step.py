"""The meta-gradient of one outer step as MetaForge computes it, for any learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Key, Learner, Params, Regularizer, Task, TaskSpec
from metaforge.engine import plans
from metaforge.engine.batch import meta_gradients
from metaforge.engine.combining import gradients_to_compile
from metaforge.engine.compiler import Compiler
from metaforge.engine.probe import probe_loss

Gradients = Callable[[], list[Tensor]]


def task_key(index: int) -> Key:
    """Return the key of a task, from which its random numbers are drawn."""
    return make_key(0, index)


def step_gradients(
    learner: Learner,
    spec: TaskSpec,
    values: Params,
    batch: Task,
    names: Sequence[str],
    *,
    plan: str = "auto",
    chunk: int | None = None,
    compiled: bool = False,
    regularizers: Sequence[Regularizer] = (),
) -> Gradients:
    """Return a function that computes the gradients of the named values, by the plan that a run would use.

    Args:
        learner: The learner.
        spec: The spec of the tasks.
        values: The learner's values.
        batch: The tasks `[tasks, ...]`.
        names: The names of the values whose gradients are returned, in this order.
        plan: The plan, or `auto`.
        chunk: How many tasks are computed together; None leaves it to MetaForge.
        compiled: Whether the step is compiled.
        regularizers: Regularizers whose terms are part of the outer loss.
    """
    tasks = len(batch.support.x)
    keys = torch.stack([task_key(index) for index in range(tasks)])
    probe = probe_loss(learner, values, tree_map(lambda x: x[:1], batch), keys[0])
    workload = plans.Workload(spec, torch.device("cpu"), tasks, (tasks,), steps=1)
    requested = plans.Requested(plan, chunk, "on" if compiled else "off")
    decision = plans.decide(learner, workload, requested, probe=probe, regularizers=regularizers)
    step = Compiler(gradients_to_compile(learner, decision.plan, regularizers, tasks)) if compiled else None

    def gradients() -> list[Tensor]:
        # fmt: off
        result = meta_gradients(learner, values, batch, keys, plan=decision.plan, chunk=decision.chunk, compiled=step,
                                regularizers=regularizers)
        # fmt: on
        return [result.grads[name] for name in names]

    return gradients
