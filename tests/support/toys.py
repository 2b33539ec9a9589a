"""Small smooth networks and tasks in float64, and comparisons of gradients with finite differences, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from metaforge.authoring.descent import Chain
from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import MULTI_LABEL, task_kind
from metaforge.authoring.protocols import (
    Adapter,
    Examples,
    InnerStep,
    Kind,
    Learner,
    Params,
    Parts,
    Regularizer,
    Task,
    TaskShape,
    TaskSpec,
)
from metaforge.engine.batch import MetaStep, meta_gradients
from metaforge_plugins.adapters.sgd import SGD, SGDOptions

POLICIES = ("transductive", "support", "running", "per-step")
BATCH_POLICIES = POLICIES[:3]
FEATURES = 3

# The quadratic task of ALGORITHMS.md, appendix F1.
H = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
A = torch.tensor([1.0, -1.0], dtype=torch.float64)
B = torch.tensor([0.0, 2.0], dtype=torch.float64)
THETA = torch.tensor([0.5, 0.25], dtype=torch.float64)


def quadratic(theta: Tensor, centre: Tensor) -> Tensor:
    """Return ½ (θ − c)ᵀ H (θ − c)."""
    return 0.5 * (theta - centre) @ H @ (theta - centre)


def inner_step(number: int = 0, loss: float = 1.0) -> InnerStep:
    """Return what an adapter gets to know of an inner step."""
    return InnerStep(number, torch.tensor(loss, dtype=torch.float64))


def sgd(lr: float) -> Chain:
    """Return a chain with gradient descent as its only adapter."""
    return Chain({"sgd": SGD(SGDOptions(lr=lr))})


def spec(kind: Kind = "classification", ways: int = 3, shots: int = 2, queries: int = 3) -> TaskSpec:
    """Return the spec of toy tasks: inputs `[FEATURES]`."""
    if not task_kind(kind).classes:
        return TaskSpec(task_kind(kind), (FEATURES,), 2, TaskShape(1, shots, queries))
    return TaskSpec(task_kind(kind), (FEATURES,), ways, TaskShape(ways, shots, queries))


def task(seed: int = 0, kind: Kind = "classification", *, ways: int = 3, shots: int = 2, queries: int = 3) -> Task:
    """Return one random task of `spec(kind, ...)`."""
    draw = torch.Generator().manual_seed(seed)

    def examples(n: int) -> Examples:
        if not task_kind(kind).classes:
            x = torch.randn(n, FEATURES, generator=draw, dtype=torch.float64)
            y = torch.randn(n, 2, generator=draw, dtype=torch.float64)
            return Examples(x, (y > 0).double() if task_kind(kind) is MULTI_LABEL else y)
        y = torch.arange(ways).repeat_interleave(n)
        x = torch.randn(ways * n, FEATURES, generator=draw, dtype=torch.float64)
        return Examples(x + centres[y], y)

    centres = torch.randn(ways, FEATURES, generator=draw, dtype=torch.float64)
    return Task(examples(shots), examples(queries))


def tasks(count: int, kind: Kind = "classification", **sizes: int) -> Task:
    """Return a batch of random tasks `[count, ...]`."""
    batch: Task = tree_map(lambda *leaves: torch.stack(leaves), *(task(seed, kind, **sizes) for seed in range(count)))
    return batch


def keys(count: int) -> Tensor:
    """Return one key for each task `[count]`."""
    return torch.stack([make_key(7, i) for i in range(count)])


def smooth(norm: str = "none", units: int = 4) -> Callable[[], nn.Module]:
    """Return a function that makes a network with one tanh layer, and batch norm, layer norm or no norm."""
    norms: Mapping[str, Callable[[int], nn.Module]] = {
        "none": lambda n: nn.Identity(),
        "batch": nn.BatchNorm1d,
        "layer": nn.LayerNorm,
    }
    return lambda: nn.Sequential(nn.Linear(FEATURES, units), norms[norm](units), nn.Tanh())


def learner(
    cls: type[Any],
    *,
    kind: Kind = "classification",
    backbone: Callable[[], nn.Module] | None = None,
    adapters: Mapping[str, Adapter] | None = None,
    regularizers: Mapping[str, Regularizer] | None = None,
    frozen: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Return a learner of toy tasks; its adapter is gradient descent by default."""
    chain = Chain(adapters) if adapters is not None else sgd(0.3)
    parts = Parts(spec(kind), backbone or smooth(), chain, regularizers or {}, frozen)
    return cls(cls.Config(**options), parts)


def double(values: Params) -> Params:
    """Return the values in float64."""
    return {name: value.double() for name, value in values.items()}


def fresh(built: Learner, seed: int = 0) -> Params:
    """Return a learner's values in float64 plus small noise, so that no norm layer has the scale 1 and the shift 0."""
    draw = torch.Generator().manual_seed(seed)
    values = double(built.init(make_key(seed, "init")))
    params, state = split_state(values)
    moved = {n: v + 0.05 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in params.items()}
    return moved | state


def step(built: Learner, values: Params, batch: Task, plan: Any = "loop", **options: Any) -> MetaStep:
    """Return the meta-gradient of a batch of tasks, computed with a plan."""
    return meta_gradients(built, values, batch, keys(len(batch.support.x)), plan=plan, **options)


def assert_equal_steps(first: MetaStep, second: MetaStep, tolerance: float = 1e-9) -> None:
    """Fail unless gradients, changes of state entries, losses and metrics agree."""
    assert first.grads.keys() == second.grads.keys()
    assert first.state.keys() == second.state.keys()
    assert first.metrics.keys() == second.metrics.keys()
    torch.testing.assert_close(first.losses, second.losses, rtol=tolerance, atol=tolerance)
    for ours, theirs in ((first.grads, second.grads), (first.state, second.state), (first.metrics, second.metrics)):
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_true_gradient(
    function: Callable[[Params], Tensor], params: Params, grads: Params | None = None, *, directions: int = 3
) -> None:
    """Fail unless gradients agree with fourth-order central differences along random directions to 1e-6."""
    if grads is None:
        grads = torch.func.grad(function)(params)
    draw, width = torch.Generator().manual_seed(77), 1e-4
    for _ in range(directions):
        direction = {n: torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in params.items()}

        def at(distance: float, direction: Params = direction) -> float:
            return float(function({n: v + distance * direction[n] for n, v in params.items()}))

        near, far = at(width) - at(-width), at(2 * width) - at(-2 * width)
        differences = (8 * near - far) / (12 * width)
        exact = float(sum((grads[n] * direction[n]).sum() for n in params))
        assert abs(exact) > 1e-5, (
            "the derivative in this direction is almost zero, so that the comparison proves nothing"
        )
        assert abs(exact - differences) <= 1e-6 * abs(exact), (exact, differences)


def assert_loss_has_its_gradient(built: Learner, seed: int = 3, kind: Kind = "classification") -> None:
    """Fail unless the gradient of a learner's loss on one task agrees with central differences."""
    params, state = split_state(fresh(built, seed))
    example, key = task(seed, kind), make_key(seed, "noise")
    assert_true_gradient(lambda p: built.loss(p | state, example, key)[0], params)


def close(actual: Tensor, *expected: float, rtol: float = 1e-6) -> None:
    """Fail unless a tensor has the expected numbers, which are known to about six decimals."""
    wanted = torch.tensor(expected, dtype=actual.dtype).reshape(actual.shape)
    torch.testing.assert_close(actual, wanted, rtol=rtol, atol=1e-6)
