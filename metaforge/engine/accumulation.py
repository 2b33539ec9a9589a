"""The mean of the results of several batches of tasks, which together are one outer step."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from metaforge.authoring.functional import add_params
from metaforge.authoring.protocols import Params
from metaforge.engine.batch import MetaStep
from metaforge.engine.contract import require_same_metrics


def mean_step(steps: Iterable[MetaStep]) -> MetaStep:
    """Return the result of an outer step over several batches of equal size.

    The gradients are summed as they come, so that an iterator holds those of one batch beside the sum.

    Args:
        steps: The results of the batches, at least one.

    Returns:
        The mean of the gradients and of the changes of the state, and the losses and metrics of all tasks.

    Raises:
        ContractError: The tasks of two batches have metrics of different names.
    """
    grads, state, losses, metrics = Params(), Params(), [], []
    for step in steps:
        grads, state = add_params(grads, step.grads), add_params(state, step.state)
        losses.append(step.losses)
        metrics.append(step.metrics)
    if len(losses) == 1:
        return MetaStep(grads, state, losses[0], metrics[0])
    require_same_metrics(metrics)
    count = len(losses)
    return MetaStep(
        {name: value / count for name, value in grads.items()},
        {name: value / count for name, value in state.items()},
        torch.cat(losses),
        {name: torch.cat([each[name] for each in metrics]) for name in metrics[0]},
    )
