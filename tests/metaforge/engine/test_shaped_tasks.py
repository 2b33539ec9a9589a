"""Tests of batches whose tasks have several shapes: gradients, state and order as computed one task after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from engine_toys import Inequality, Shrinkage
from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import add_params, one_task, sum_of
from metaforge.authoring.protocols import Aux, Examples, Options, Params, Parts, Task, TaskShape, TaskSpec
from metaforge.engine.batch import MetaStep, meta_gradients, mixed_gradients
from metaforge.engine.chunks import ChunkResult
from metaforge.engine.local_batch import LocalBatch
from metaforge.engine.shaped_tasks import ShapedTasks, chunks, rows_of
from metaforge.errors import ContractError
from metaforge_plugins.adapters.sgd import SGD, SGDOptions
from metaforge_plugins.learners.gradient.fomaml import FOMAML
from metaforge_plugins.learners.gradient.leo import LEO
from metaforge_plugins.learners.gradient.maml import MAML
from metaforge_plugins.learners.gradient.reptile import Reptile
from metaforge_plugins.learners.metric.protonet import ProtoNet
from toys import FEATURES, assert_equal_steps, fresh, keys, smooth, tasks

# Ways, shots of each class, and queries per class of seven tasks; those of equal support total are of one shape.
LEARNERS: list[tuple[Any, dict[str, Any]]] = [
    (MAML, {"steps": 2, "adapt": "all", "norm": "running"}),
    (FOMAML, {"steps": 2}),
    (Reptile, {"steps": 2, "batch": 4}),
    (ProtoNet, {}),
    (LEO, {"steps": 2, "finetune": 1, "latent": 3}),
]
SHOTS = {True: [(1, 2, 4), (3, 3, 1), (1, 1, 1), (2, 2, 3), (1, 1, 1), (5, 1, 1), (1, 2, 1)],
         False: [(1, 2, 4), (2, 5), (1, 1, 1), (3, 3, 1), (1, 1), (1, 6), (1, 1, 1)]}  # fmt: skip


def unequal(seed: int, shots: tuple[int, ...], queries: int = 2) -> Task:
    """Return a task whose classes have these numbers of support examples, in a random order."""
    draw = torch.Generator().manual_seed(seed)
    ways = len(shots)
    centres = torch.randn(ways, FEATURES, generator=draw, dtype=torch.float64)
    parts = []
    for counts in (torch.tensor(shots), torch.full((ways,), queries)):
        y = torch.arange(ways).repeat_interleave(counts)[torch.randperm(int(counts.sum()), generator=draw)]
        parts.append(Examples(centres[y] + torch.randn(len(y), FEATURES, generator=draw, dtype=torch.float64), y))
    support, query = parts
    return Task(support, query, torch.randperm(9, generator=draw)[:ways])


def built(cls: Any, options: dict[str, Any], ways: int) -> Any:
    spec = TaskSpec("classification", (FEATURES,), ways, TaskShape(ways, 0, 0), 9)
    return cls(cls.Config(**options), Parts(spec, smooth("batch"), Chain({"sgd": SGD(SGDOptions(lr=0.3))}), {}))


def mixed(cls: Any, options: dict[str, Any], chunk: int | None = None) -> tuple[list[ShapedTasks], list[Task]]:
    """Return seven tasks by shape, and one by one."""
    single = [unequal(seed, shots) for seed, shots in enumerate(SHOTS[cls.tags.fixed_ways])]
    by_shape: dict[tuple[int, int], list[int]] = {}
    for position, task in enumerate(single):
        by_shape.setdefault((int(task.query.y.max()) + 1, len(task.support.y)), []).append(position)
    assert any(len(positions) > 1 for positions in by_shape.values())
    batch = []
    for (ways, _), positions in by_shape.items():
        stacked: Task = tree_map(lambda *t: torch.stack(t), *(single[p] for p in positions))
        batch.append(ShapedTasks(built(cls, options, ways), stacked, keys(7)[positions], positions, chunk))
    return batch, single


def one_by_one(cls: Any, options: dict[str, Any], single: list[Task], values: Params) -> MetaStep:
    """Return the mean of the gradients and state changes of single tasks."""
    steps = [
        meta_gradients(
            built(cls, options, int(task.query.y.max()) + 1), values, Task(*map(batched, task[:2])), keys(7)[i : i + 1]
        )
        for i, task in enumerate(single)
    ]
    count = len(steps)
    grads: Params = {}
    state: Params = {}
    for step in steps:
        grads = add_params(grads, {name: value / count for name, value in step.grads.items()})
        state = add_params(state, {name: value / count for name, value in step.state.items()})
    metrics = {name: torch.cat([step.metrics[name] for step in steps]) for name in steps[0].metrics}
    return MetaStep(grads, state, torch.cat([step.losses for step in steps]), metrics)


def batched(part: Examples) -> Examples:
    return Examples(part.x[None], part.y[None])


@pytest.mark.parametrize(("cls", "options"), LEARNERS, ids=lambda value: getattr(value, "__name__", ""))
def test_tasks_of_several_shapes_have_the_gradient_of_their_mean(cls: Any, options: dict[str, Any]) -> None:
    assert cls.tags.varied_shots
    values = fresh(built(cls, options, 3))
    batch, single = mixed(cls, options)
    expected = one_by_one(cls, options, single, values)
    assert max(float(grad.abs().max()) for grad in expected.grads.values()) > 1e-3
    for plan, chunk in (("loop", None), ("vmap", None), ("fold", None), ("vmap", 1)):
        cut = [shaped._replace(chunk=chunk) for shaped in batch]
        assert_equal_steps(mixed_gradients(cut, values, plan=plan), expected, 1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("plan", ["loop", "vmap", "fold"])
def test_regularizers_see_the_losses_in_the_order_of_the_tasks(plan: Any) -> None:
    cls, options = LEARNERS[0]
    values = fresh(built(cls, options, 3))
    batch, single = mixed(cls, options)
    steps = [
        meta_gradients(built(cls, options, 3), values, Task(*map(batched, task[:2])), keys(7)[i : i + 1])
        for i, task in enumerate(single)
    ]
    losses = torch.cat([step.losses for step in steps])
    # The derivative of the mean plus the variance of the losses with respect to each of them.
    weights = (1 + 2 * (losses - losses.mean())) / 7
    result = mixed_gradients(batch, values, plan=plan, regularizers=(Inequality(Options()), Shrinkage(Options())))
    torch.testing.assert_close(result.losses, losses, rtol=1e-12, atol=1e-12)
    for name, grad in result.grads.items():
        expected = sum_of(weight * step.grads[name] for weight, step in zip(weights, steps, strict=True))
        if name == "model.0.0.weight":
            expected = expected + values[name]
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_chunks_stay_within_groups_and_cover_every_task_once() -> None:
    batch, _ = mixed(*LEARNERS[3])
    for groups in ((7,), (3, 4), (1, 1, 5), (0, 7)):
        found = list(chunks(batch, groups, "vmap"))
        ends = [sum(groups[: i + 1]) for i in range(len(groups))]
        for chunk in found:
            assert len(chunk.keys) == len(chunk.positions) == len(chunk.tasks.support.x)
            assert all(
                ends[chunk.group] - groups[chunk.group] <= position < ends[chunk.group] for position in chunk.positions
            )
            for i, position in enumerate(chunk.positions):
                assert torch.equal(
                    one_task(chunk.tasks, i).support.x, unequal(position, SHOTS[False][position]).support.x
                )
        assert sorted(position for chunk in found for position in chunk.positions) == [*range(7)]
        assert [chunk.group for chunk in found] == sorted(chunk.group for chunk in found)


def test_one_shape_is_cut_like_a_plain_batch() -> None:
    batch = tasks(6)
    shaped = ShapedTasks(None, batch, keys(6), range(6), 4)  # type: ignore[arg-type]
    assert [len(chunk.keys) for chunk in chunks([shaped], (6,), "fold")] == [4, 2]
    assert [len(chunk.keys) for chunk in chunks([shaped], (3, 3), "fold")] == [3, 3]
    assert [len(chunk.keys) for chunk in chunks([shaped], (6,), "loop")] == [1] * 6


def test_groups_give_the_same_sums_as_one() -> None:
    cls, options = LEARNERS[0]
    values = fresh(built(cls, options, 3))
    batch, _ = mixed(cls, options)
    whole = mixed_gradients(batch, values, plan="vmap")
    assert_equal_steps(mixed_gradients(batch, values, plan="vmap", local=LocalBatch(7, (3, 4))), whole, 1e-12)


def test_metrics_of_other_names_are_refused() -> None:
    def result(**metrics: Tensor) -> ChunkResult:
        return ChunkResult(torch.zeros(1), {}, metrics)

    rows, names, terms = rows_of([(result(score=torch.ones(1)), [1]), (result(score=torch.zeros(1)), [0])])
    assert (rows.tolist(), names, terms) == ([[0, 0], [0, 1]], ["score"], [])
    with pytest.raises(ContractError, match="tasks of two shapes have different metrics: instance_2"):
        rows_of([(result(score=torch.ones(1)), [0]), (result(score=torch.ones(1), instance_2=torch.ones(1)), [1])])


class Sized(ProtoNet):
    """Logs the number of its support examples under a name that has that number."""

    def loss(self, values: Params, task: Task, key: Tensor) -> tuple[Tensor, Aux]:
        loss, aux = super().loss(values, task, key)
        return loss, aux._replace(metrics={f"of_{len(task.support.y)}": loss.detach()})


def test_a_learner_whose_metrics_depend_on_the_shape_is_refused() -> None:
    batch, _ = mixed(Sized, {})
    with pytest.raises(ContractError, match="different metrics: of_"):
        mixed_gradients(batch, fresh(built(Sized, {}, 3)))
