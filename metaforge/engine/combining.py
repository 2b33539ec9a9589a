"""The weights of the tasks of a batch in an outer loss that combines the losses and terms of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import grad

from metaforge.authoring.functional import sum_of
from metaforge.authoring.protocols import Learner, Params, Regularizer, Task
from metaforge.engine.chunks import ByTask, ChunkGradients, ChunkResult, chunk_forward, chunk_gradients
from metaforge.engine.contract import checked_term
from metaforge.engine.plans import Plan, combining_regularizers


def terms_read(regularizers: Sequence[Regularizer]) -> tuple[str, ...]:
    """Return the names of the terms that the regularizers read, sorted."""
    return tuple(sorted({name for regularizer in regularizers for name in regularizer.terms}))


def combined_weights(by_task: ByTask, regularizers: Sequence[Regularizer]) -> ByTask:
    """Return the derivatives of the outer loss with respect to the loss and the terms of each task.

    Args:
        by_task: The losses and the terms themselves, of all tasks of the batch.
        regularizers: The regularizers with a `combine` term.
    """
    weights: ByTask = grad(lambda x: _combined_loss(x, regularizers))(by_task)
    return weights


def gradients_to_compile(
    learner: Learner, plan: Plan, regularizers: Sequence[Regularizer] = (), tasks: int = 1
) -> ChunkGradients:
    """Return the function that `metaforge.engine.compiler.Compiler` compiles for a training step.

    It is `chunk_gradients`. If regularizers combine the losses of all tasks, it computes the weights of the tasks, too,
    so that a chunk must be the whole batch; the weights that it is given do not matter then.

    Args:
        learner: The learner.
        plan: The plan.
        regularizers: The regularizers whose terms are part of the outer loss.
        tasks: The number of tasks of the whole batch.
    """
    combining = combining_regularizers(regularizers, tasks)
    if not combining:
        return chunk_gradients(learner, plan)
    forward = chunk_forward(learner, plan, terms_read(combining))

    def gradients(
        weights: Tensor, params: Params, state: Params, tasks: Task, keys: Tensor
    ) -> tuple[ChunkResult, Params]:
        result, pullback = forward(params, state, tasks, keys)
        return result, pullback(combined_weights(ByTask(result.losses, result.terms), combining))

    return gradients


def _combined_loss(by_task: ByTask, regularizers: Sequence[Regularizer]) -> Tensor:
    """Return the mean of the task losses plus the regularizers' `combine` terms."""
    added = []
    for regularizer in regularizers:
        # Sorted, because a sum over them must not depend on the order of a set.
        terms = {name: by_task.terms[name] for name in sorted(regularizer.terms)}
        if (term := regularizer.combine(by_task.losses, terms)) is not None:
            added.append(checked_term(term, "combine", regularizer))
    return sum_of([by_task.losses.mean(), *added])
