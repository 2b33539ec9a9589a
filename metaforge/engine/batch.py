"""Meta-gradients and test scores of a batch of tasks, for any learner.

A learner is written for one task. This package handles the task dimension: it cuts a batch into chunks, computes each
chunk by a plan (see `metaforge.engine.chunks`), and sums gradients over chunks and over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import add_params, matching, one_task, split_state
from metaforge.authoring.kinds import TaskKind, score
from metaforge.authoring.layers import images
from metaforge.authoring.protocols import Examples, Learner, Params, Regularizer, Task
from metaforge.engine.chunk_sums import reduced, with_all_entries, with_combined_weights, with_equal_weights
from metaforge.engine.chunks import ChunkGradients
from metaforge.engine.contract import checked_term, unmodified
from metaforge.engine.local_batch import LocalBatch
from metaforge.engine.plans import Plan, combining_regularizers
from metaforge.engine.precision import primitive_attention, rounding
from metaforge.engine.predictions import evaluation_keys, require_prediction
from metaforge.engine.shaped_tasks import Chunk, ShapedTasks, chunks


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
        return prepare_tensor(x, device, dtype)

    # Not by `tree_map`, which takes longer than a small step's other work on the host.
    classes = move(task.classes) if isinstance(task.classes, Tensor) else ()
    return Task(Examples(*map(move, task.support)), Examples(*map(move, task.query)), classes)


def prepare_tensor(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return inputs or targets on `device`, in `dtype` unless they are integers; uint8 is divided by 255."""
    if x.dtype == torch.uint8:
        return x.to(device).to(dtype) / 255
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


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
    frozen: Sequence[str] = (),
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
        compiled: `Compiler(gradients_to_compile(learner, plan, regularizers, tasks))`; None computes eagerly.
        frozen: Patterns of the names of values that nothing changes: like state entries they are not differentiated.

    Returns:
        What `mixed_gradients`, which this calls, returns (and it raises what that raises).
    """
    shaped = ShapedTasks(learner, tasks, keys, range(len(keys)), chunk, compiled)
    return mixed_gradients([shaped], values, plan=plan, regularizers=regularizers, local=local, frozen=frozen)


@primitive_attention()
def mixed_gradients(
    batch: Sequence[ShapedTasks],
    values: Params,
    *,
    plan: Plan = "loop",
    regularizers: Sequence[Regularizer] = (),
    local: LocalBatch | None = None,
    frozen: Sequence[str] = (),
) -> MetaStep:
    """Return the gradient of the outer loss of a batch whose tasks have several shapes.

    Args:
        batch: The local tasks by shape, each with a learner that is built for it.
        values: The parameters, for which gradients are returned, and the `state.` entries, for which none are.
        plan: How a chunk of tasks is computed, see `metaforge.engine.chunks`.
        regularizers: Regularizers whose `penalty` and `combine` terms are part of the outer loss.
        local: Which tasks of the whole batch these are, and how to reduce over ranks; None if they are all of them.
        frozen: Patterns of the names of values that nothing changes: like state entries they are not differentiated.

    Returns:
        The meta-gradient, the change of the state, and the losses and metrics of the whole batch, in the order of the
        tasks, equal on all ranks.

    Raises:
        ContractError: The learner returns an invalid value, or changes an input in place.
        ValueError: A part is compiled and a regularizer has a `combine` term, but the chunk is not the whole batch.
    """
    params, state = split_state(values, frozen)
    count = sum(len(shaped.keys) for shaped in batch)
    local = local or LocalBatch(count, (count,))
    combining = combining_regularizers(regularizers, local.total)
    compiled = any(shaped.compiled for shaped in batch)
    with ExitStack() as contexts:
        for shaped in batch:
            contexts.enter_context(unmodified(values, shaped.tasks, shaped.keys))
        contexts.enter_context(_batched_image_layers(plan, batch[0].keys.device))
        parts: Iterable[Chunk] = chunks(batch, local.groups, plan)
        if combining and compiled:
            parts = [*parts]
            if [len(part.keys) for part in parts] != [local.total]:
                raise ValueError("A compiled step whose task weights depend on all losses has one chunk of all tasks.")
        if combining and not compiled:
            groups, results = with_combined_weights(plan, params, state, parts, local, combining)
        else:
            groups, results = with_equal_weights(plan, params, state, parts, local)
        if not local.is_whole:
            groups = with_all_entries(groups, values, frozen)
        sums, by_task, metrics = reduced(local, groups, results)
        fixed = frozenset(matching(sums, frozen))
        grads, change = split_state({name: value for name, value in sums.items() if name not in fixed})
        for regularizer in regularizers:
            grads = add_params(grads, _penalty_grads(regularizer, params, state))
    return MetaStep(grads, change, by_task.losses, metrics)


def _penalty_grads(regularizer: Regularizer, params: Params, state: Params) -> Params:
    """Return the gradient of a regularizer's penalty; an empty dictionary if it has none."""
    if regularizer.penalty(params | state) is None:
        return {}
    grads: Params = grad(lambda p: checked_term(regularizer.penalty(p | state), "penalty", regularizer))(params)
    return grads


@contextmanager
def _batched_image_layers(plan: Plan, device: torch.device) -> Iterator[None]:
    """Let image layers compute all tasks in one channels-last call where that was measured to be faster.

    That is on a CPU, in float32 or float64, under every plan but `loop`, in networks that pool.
    """
    faster = plan != "loop" and device.type == "cpu" and not torch.is_autocast_enabled(device.type)
    with images.channels_last_kernels("pooled") if faster else nullcontext():
        yield


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
        return Scores(score(kind, prediction, task.query.y), prediction, measures)

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
