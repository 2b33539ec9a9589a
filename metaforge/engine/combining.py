"""The weights of the tasks of a batch in an outer loss that combines the losses and terms of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.func import grad

from metaforge.authoring.functional import sum_of
from metaforge.authoring.protocols import Regularizer
from metaforge.engine.chunks import ByTask
from metaforge.engine.contract import checked_term


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


def _combined_loss(by_task: ByTask, regularizers: Sequence[Regularizer]) -> Tensor:
    """Return the mean of the task losses plus the regularizers' `combine` terms."""
    added = []
    for regularizer in regularizers:
        # Sorted, because a sum over them must not depend on the order of a set.
        terms = {name: by_task.terms[name] for name in sorted(regularizer.terms)}
        if (term := regularizer.combine(by_task.losses, terms)) is not None:
            added.append(checked_term(term, "combine", regularizer))
    return sum_of([by_task.losses.mean(), *added])
