"""The summed gradients of the chunks of a batch: with equal weights, or with weights that depend on all task losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import add_params, matching
from metaforge.authoring.progress import is_progress
from metaforge.authoring.protocols import Params, Regularizer
from metaforge.engine.chunks import ByTask, ChunkResult, chunk_forward, chunk_gradients
from metaforge.engine.combining import combined_weights, terms_read
from metaforge.engine.local_batch import LocalBatch
from metaforge.engine.plans import Plan
from metaforge.engine.shaped_tasks import Chunk, Result, rows_of


def with_equal_weights(
    plan: Plan, params: Params, state: Params, parts: Iterable[Chunk], local: LocalBatch
) -> tuple[list[Params], list[Result]]:
    """Return the summed gradients and state changes of each group, and the results of all chunks.

    Every task has the weight 1 / total. So the gradients of a chunk can be computed directly after its losses, and its
    graph is freed before the next chunk.
    """
    groups: list[Params] = [{} for _ in local.groups]
    results = []
    for group, shaped, tasks, keys, positions in parts:
        run = shaped.compiled or chunk_gradients(shaped.learner, plan)
        weights = torch.full((len(keys),), 1 / local.total, dtype=torch.float64, device=keys.device)
        result, grads = run(weights, params, state, tasks, keys)
        groups[group] = add_params(groups[group], add_params(_state_change(result, state, local), grads))
        results.append((result, positions))
    return groups, results


def with_combined_weights(
    plan: Plan,
    params: Params,
    state: Params,
    parts: Iterable[Chunk],
    local: LocalBatch,
    combining: Sequence[Regularizer],
) -> tuple[list[Params], list[Result]]:
    """Return the summed gradients and state changes of each group, and the results of all chunks.

    The weights of a task are the derivatives of the combined loss with respect to the loss and the terms of that task.
    They depend on those of all tasks. So the losses of all chunks, on all ranks, are computed first, then the
    gradients. The graphs of all local chunks are kept in between.
    """
    groups: list[Params] = [{} for _ in local.groups]
    results, pullbacks, names = [], [], terms_read(combining)
    for group, shaped, tasks, keys, positions in parts:
        result, pullback = chunk_forward(shaped.learner, plan, names)(params, state, tasks, keys)
        groups[group] = add_params(groups[group], _state_change(result, state, local))
        results.append((result, positions))
        pullbacks.append((group, pullback))
    _, by_task, _ = reduced(local, [{}], results)
    weights = combined_weights(by_task, combining)
    for (group, pullback), (_, positions) in zip(pullbacks, results, strict=True):
        places = [local.first + position for position in positions]
        groups[group] = add_params(groups[group], pullback(tree_map(lambda x, at=places: x[at], weights)))
    return groups, results


def reduced(local: LocalBatch, groups: list[Params], results: Sequence[Result]) -> tuple[Params, ByTask, Params]:
    """Return the sums of all groups, and the losses, terms and metrics of all tasks, in one collective per dtype.

    Raises:
        ContractError: Tasks of two shapes, on this rank or on two, have metrics of different names.
    """
    rows, metrics, terms = rows_of(results)
    if local.require_same_metrics is not None:
        local.require_same_metrics(metrics)
    sums, rows = local.reduce(groups, rows)
    columns, split = rows.unbind(1), 1 + len(metrics)
    by_task = ByTask(columns[0], dict(zip(terms, columns[split:], strict=True)))
    by_name = dict(zip(metrics, columns[1:split], strict=True))
    return sums, by_task, {name: by_name[name] for name in results[0][0].metrics}


def with_all_entries(groups: list[Params], values: Params, frozen: Sequence[str]) -> list[Params]:
    """Return sums that have an entry for every value that an outer step can change, in the order of the values.

    Ranks add their sums by position. But tasks of one shape may change other state entries than those of another. What
    a group lacks becomes -0.0: adding it changes no bit of a number, whereas -0.0 + 0.0 is 0.0.

    Args:
        groups: The sums of each local group.
        values: The learner's values.
        frozen: Patterns of the names of values that nothing changes.
    """
    fixed = frozenset(matching(values, frozen))
    changing = {name: value for name, value in values.items() if name not in fixed and not is_progress(name)}
    return [
        {name: group[name] if name in group else torch.full_like(value, -0.0) for name, value in changing.items()}
        for group in groups
    ]


def _state_change(result: ChunkResult, state: Params, local: LocalBatch) -> Params:
    """Return what a chunk contributes to the mean change of the state over the whole batch, in the state's dtypes."""
    if not result.state:
        return {}
    share, change = len(result.losses) / local.total, Params()
    for name, value in result.state.items():
        dtype = state[name].dtype
        # Not always by `to`, which costs as much as the product where it changes nothing.
        change[name] = share * (value if value.dtype == dtype else value.to(dtype))
    return change
