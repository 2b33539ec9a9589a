"""Meta-gradients and test scores of a batch of tasks, for any learner.

A learner is written for one task. This package handles the task dimension: it cuts a batch into chunks, computes each
chunk by a plan (see `metaforge.engine.chunks`), and sums gradients over chunks and over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import add_params, one_task, split_state
from metaforge.authoring.keys import fold_in
from metaforge.authoring.kinds import TaskKind
from metaforge.authoring.layers import images
from metaforge.authoring.protocols import Examples, Learner, Params, Regularizer, Task
from metaforge.engine.chunks import ByTask, ChunkForward, ChunkGradients, ChunkResult, chunk_forward, chunk_gradients
from metaforge.engine.combining import combined_weights, terms_read
from metaforge.engine.contract import unmodified
from metaforge.engine.local_batch import LocalBatch
from metaforge.engine.plans import Plan, combining_regularizers
from metaforge.engine.precision import primitive_attention, rounding
from metaforge.engine.predictions import require_prediction


@dataclass(frozen=True)
class MetaStep:
    """The result of one outer step on a batch of tasks, before the outer optimiser updates the parameters.

    Attributes:
        grads: The meta-gradient, by parameter.
        state: What to add to each `state.` entry.
        losses: The task losses `[tasks]`.
        metrics: Each metric `[tasks]`, by name.
    """

    grads: Params
    state: Params
    losses: Tensor
    metrics: Params


class Scores(NamedTuple):
    """The scores of a batch of test tasks.

    Attributes:
        scores: The score of each task `[tasks]`, by the kind of the tasks.
        predictions: The predictions for the queries `[tasks, n, outputs]`.
        measures: The learner's own test metrics (`Learner.measure`), each `[tasks]`, by name.
    """

    scores: Tensor
    predictions: Tensor
    measures: Params


def prepare_tasks(task: Task, device: torch.device, dtype: torch.dtype) -> Task:
    """Return a task, or a batch of tasks, on `device` and in `dtype`.

    Tensors of dtype uint8 are divided by 255, so that images are in [0, 1]. Integer labels keep their dtype.
    """

    def move(x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return x.to(device).to(dtype) / 255
        return x.to(device, dtype) if x.is_floating_point() else x.to(device)

    # Not by `tree_map`, which takes longer than a small step's other work on the host.
    classes = move(task.classes) if isinstance(task.classes, Tensor) else ()
    return Task(Examples(*map(move, task.support)), Examples(*map(move, task.query)), classes)


@primitive_attention()
def meta_gradients(
    learner: Learner,
    values: Params,
    tasks: Task,
    keys: Tensor,
    *,
    plan: Plan = "loop",
    chunk: int | None = None,
    regularizers: Sequence[Regularizer] = (),
    local: LocalBatch | None = None,
    compiled: ChunkGradients | None = None,
) -> MetaStep:
    """Return the gradient of the outer loss: the mean task loss of a batch, plus the regularizers' terms.

    Args:
        learner: The learner; its `loss` is the loss of one task.
        values: The parameters, for which gradients are returned, and the `state.` entries, for which none are.
        tasks: The local tasks; every tensor has a leading task dimension, `[tasks, ...]`.
        keys: One key per task, `[tasks]`.
        plan: How a chunk of tasks is computed, see `metaforge.engine.chunks`.
        chunk: Compute at most this many tasks together; None for all. `loop` computes one at a time in any case.
        regularizers: Regularizers whose `penalty` and `combine` terms are part of the outer loss.
        local: Which tasks of the whole batch these are, and how to reduce over ranks; None if they are all of them.
        compiled: `Compiler(chunk_gradients(learner, plan))`, for the same learner and plan; None computes eagerly.

    Returns:
        The meta-gradient, the change of the state, and the losses and metrics of the whole batch, equal on all ranks.

    Raises:
        ContractError: The learner returns an invalid value, or changes an input in place.
        ValueError: `compiled` is passed, but a regularizer has a `combine` term: its step cannot be compiled.
    """
    params, state = split_state(values)
    local = local or LocalBatch(len(keys), (len(keys),))
    combining = combining_regularizers(regularizers, local.total)
    if combining and compiled:
        raise ValueError("A step whose task weights depend on all task losses cannot be compiled.")
    chunks = _chunks(tasks, keys, local.groups, 1 if plan == "loop" else chunk)
    with unmodified(values, tasks, keys), _batched_image_layers(plan, keys.device):
        if combining:
            forward = chunk_forward(learner, plan, terms_read(combining))
            groups, results = _with_combined_weights(forward, params, state, chunks, local, combining)
        else:
            run = compiled or chunk_gradients(learner, plan)
            groups, results = _with_equal_weights(run, params, state, chunks, local)
        sums, by_task, metrics = _reduced(local, groups, results)
        grads, change = split_state(sums)
        for regularizer in regularizers:
            grads = add_params(grads, _penalty_grads(regularizer, params, state))
    return MetaStep(grads, change, by_task.losses, metrics)


class _Chunk(NamedTuple):
    """A chunk of tasks `[tasks, ...]` with their keys `[tasks]`, and the index of the group that they belong to."""

    group: int
    tasks: Task
    keys: Tensor


def _chunks(tasks: Task, keys: Tensor, groups: Sequence[int], size: int | None) -> Iterator[_Chunk]:
    """Yield the chunks of each group in order, each of at most `size` tasks."""
    first = 0
    for group, count in enumerate(groups):
        for begin in range(first, first + count, size or count):
            part = slice(begin, min(begin + (size or count), first + count))
            yield _Chunk(group, tree_map(lambda t, part=part: t[part], tasks), keys[part])
        first += count


def _with_equal_weights(
    run: ChunkGradients, params: Params, state: Params, chunks: Iterable[_Chunk], local: LocalBatch
) -> tuple[list[Params], list[ChunkResult]]:
    """Return the summed gradients and state changes of each group, and the results of all chunks.

    Every task has the weight 1 / total. So the gradients of a chunk can be computed directly after its losses, and its
    graph is freed before the next chunk.
    """
    groups: list[Params] = [{} for _ in local.groups]
    results = []
    for group, tasks, keys in chunks:
        weights = torch.full((len(keys),), 1 / local.total, dtype=torch.float64, device=keys.device)
        result, grads = run(weights, params, state, tasks, keys)
        groups[group] = add_params(groups[group], add_params(_state_change(result, local), grads))
        results.append(result)
    return groups, results


def _with_combined_weights(
    forward: ChunkForward,
    params: Params,
    state: Params,
    chunks: Iterable[_Chunk],
    local: LocalBatch,
    regularizers: Sequence[Regularizer],
) -> tuple[list[Params], list[ChunkResult]]:
    """Return the summed gradients and state changes of each group, and the results of all chunks.

    The weights of a task are the derivatives of the combined loss with respect to the loss and the terms of that task.
    They depend on those of all tasks. So the losses of all chunks, on all ranks, are computed first, then the
    gradients. The graphs of all local chunks are kept in between.
    """
    groups: list[Params] = [{} for _ in local.groups]
    results, pullbacks = [], []
    for group, tasks, keys in chunks:
        result, pullback = forward(params, state, tasks, keys)
        groups[group] = add_params(groups[group], _state_change(result, local))
        results.append(result)
        pullbacks.append((group, pullback))
    weights = combined_weights(_reduced(local, [{}], results).by_task, regularizers)
    first = local.first
    for (group, pullback), result in zip(pullbacks, results, strict=True):
        part = slice(first, first + len(result.losses))
        groups[group] = add_params(groups[group], pullback(tree_map(lambda x, part=part: x[part], weights)))
        first = part.stop
    return groups, results


class _Reduced(NamedTuple):
    """The summed gradients and state changes of the whole batch, and the losses, terms and metrics of all its tasks."""

    sums: Params
    by_task: ByTask
    metrics: Params


def _reduced(local: LocalBatch, groups: list[Params], results: Sequence[ChunkResult]) -> _Reduced:
    """Reduce the sums of the local groups, and the rows of the chunks' tasks, in one collective per dtype."""
    losses = torch.cat([result.losses for result in results])
    metrics = {name: torch.cat([result.metrics[name] for result in results]) for name in results[0].metrics}
    terms = {name: torch.cat([result.terms[name] for result in results]) for name in results[0].terms}
    scalars = [*metrics.values(), *terms.values()]
    sums, rows = local.reduce(groups, torch.stack([losses, *(scalar.to(losses.dtype) for scalar in scalars)], 1))
    columns, split = rows.unbind(1), 1 + len(metrics)
    by_task = ByTask(columns[0], dict(zip(terms, columns[split:], strict=True)))
    return _Reduced(sums, by_task, dict(zip(metrics, columns[1:split], strict=True)))


def _state_change(result: ChunkResult, local: LocalBatch) -> Params:
    """Return what a chunk contributes to the mean change of the state over the whole batch."""
    return {name: len(result.losses) / local.total * change for name, change in result.state.items()}


def _penalty_grads(regularizer: Regularizer, params: Params, state: Params) -> Params:
    """Return the gradient of a regularizer's penalty; an empty dictionary if it has none."""
    if regularizer.penalty(params | state) is None:
        return {}
    grads: Params = grad(lambda p: regularizer.penalty(p | state))(params)
    return grads


@contextmanager
def _batched_image_layers(plan: Plan, device: torch.device) -> Iterator[None]:
    """Let image layers compute all tasks in one channels-last call where that was measured to be faster.

    That is on a CPU, in float32 or float64, under every plan but `loop`, in networks that pool.
    """
    faster = plan != "loop" and device.type == "cpu" and not torch.is_autocast_enabled(device.type)
    with images.channels_last_kernels("pooled") if faster else nullcontext():
        yield


def evaluation_keys(kind: TaskKind, key: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the keys that evaluation passes to `adapt` and to `predict`: two of the task's key, or None for both."""
    if key is None or not kind.needs_key:
        return None, None
    return fold_in(key, "adapt"), fold_in(key, "predict")


@primitive_attention()
def score_tasks(
    learner: Learner,
    values: Params,
    tasks: Task,
    keys: Tensor | None = None,
    *,
    kind: TaskKind,
    steps: int | None = None,
    plan: Plan = "loop",
    measure: bool = False,
    outputs: int | None = None,
) -> Scores:
    """Return the scores of a batch of test tasks after adaptation; no graph is built and no tensor is changed.

    The precision is that of the values: products are rounded neither to bfloat16 nor to TF32.

    Args:
        learner: The learner to evaluate.
        values: Its parameters and `state.` entries.
        tasks: The test tasks; every tensor has a leading task dimension, `[tasks, ...]`.
        keys: One key per task, `[tasks]`, for the noise of the learner's own metrics and of an environment; needed only
            with `measure`, and where the kind of the tasks needs keys.
        kind: The kind of the tasks, which scores the predictions.
        steps: The number of adaptation steps; None for the learner's own.
        plan: `loop` computes one task after another; `vmap` and `fold` compute all tasks in one `vmap` call.
        measure: Whether to compute the learner's own test metrics too.
        outputs: The number of predictions per query that the tasks need; None does not check the shape of predictions.

    Returns:
        The scores, the predictions and, with `measure` and `keys`, the learner's own test metrics.

    Raises:
        ContractError: The learner changes an input in place.
        PluginError: The predictions for a task do not have the shape `[n, outputs]`.
        ValueError: The kind of the tasks needs keys, and there are none.
    """
    if kind.needs_key and keys is None:
        raise ValueError(f"The evaluation of {kind.name} tasks needs keys.")

    def score_task(task: Task, key: Tensor | None) -> Scores:
        # A copy, so that entries that the learner adds or removes do not reach the next task.
        own = dict(values)
        adapting, predicting = evaluation_keys(kind, key)
        fast = learner.adapt(own, task.support, steps=steps, key=adapting)
        prediction = learner.predict(own, fast, task.query.x, key=predicting)
        if outputs is not None:
            require_prediction(learner, prediction, len(task.query.x), outputs)
        measures = learner.measure(own, task, key) if measure and key is not None else {}
        return Scores(kind.score(prediction, task.query.y), prediction, measures)

    device = tasks.support.x.device
    with (
        torch.no_grad(),
        rounding(device, "float32", tf32=False),
        unmodified(values, tasks, keys),
        _batched_image_layers(plan, device),
    ):
        if plan == "loop":
            count = len(tasks.support.x)
            each: list[Any] = [score_task(one_task(tasks, i), None if keys is None else keys[i]) for i in range(count)]
            return Scores(*tree_map(lambda *leaves: torch.stack(leaves), *each))
        scores: Scores = vmap(score_task, in_dims=(0, None if keys is None else 0))(tasks, keys)
        return scores
