"""What learners share that adapt a network's weights by gradients on the support set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring.functional import (
    added,
    advanced,
    criterion,
    detached,
    gradient,
    prefixed,
    score,
    select,
    sum_of,
)
from metaforge.authoring.keys import fold_in
from metaforge.authoring.model import Model
from metaforge.authoring.protocols import (
    Aux,
    Examples,
    GradientTransform,
    Key,
    Learner,
    NormPolicy,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    TaskSpec,
)
from metaforge.kernels.recompute import recompute_in_backward


class InnerLoopOptions(Options):
    """Options of every learner with an inner loop."""

    steps: int = Field(1, ge=0, le=1000, description="inner steps in training")
    test_steps: int = Field(3, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("transductive", description="whose statistics batch norm uses for queries")
    adapt: Literal["weights", "all"] = Field(
        "weights", description="what the inner loop moves: all but the norm layers' own parameters, or all"
    )
    recompute: bool = Field(
        False, description="do inner steps again for the meta-gradient, not keep them: less memory for more time"
    )


class InnerLoopLearner(Learner):
    """A network whose weights an adapter moves on the support set; concrete learners say what their loss is."""

    tags: ClassVar[Tags] = Tags(
        kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone", "adapter"}), adapts=True
    )
    first_order: ClassVar[bool] = False
    config: InnerLoopOptions
    spec: TaskSpec
    adapter: GradientTransform
    model: Model
    criterion: Callable[[Tensor, Tensor], Tensor]
    adapted: tuple[str, ...]

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        assert parts.adapter is not None
        self.config, self.spec, self.adapter = config, parts.spec, parts.adapter
        self.model = Model.of(parts, norm=config.norm, steps=config.steps, outputs=parts.spec.outputs)
        self.criterion = criterion(parts.spec.kind)
        self.norm, self.transductive, self.steps = self.model.norm, self.model.transductive, config.test_steps
        frozen = self.model.norm_names if config.adapt == "weights" else frozenset[str]()
        self.adapted = tuple(n for n in (f"model.{name}" for name in self.model.names) if n not in frozen)

    def init(self, key: Key) -> Params:
        """Return the network's values and the adapter's."""
        values = self.model.init(fold_in(key, "model"))
        return values | prefixed("adapters", self.adapter.init({name: values[name] for name in self.adapted}))

    def descend(
        self, values: Params, support: Examples, steps: int, key: Key | None, *, first_order: bool = False
    ) -> tuple[Params, Params]:
        """Return (adapted entries, what to add to the state) after `steps` inner steps on the support loss."""

        def objective(moved: Params, step: int, x: Tensor, y: Tensor, *drawn: Tensor) -> tuple[Tensor, Params]:
            return self.support_loss(moved, Examples(x, y), step, *(drawn or (None,)))

        fast = {name: values[name] for name in self.adapted}
        given = support if key is None else (*support, key)
        again = self.config.recompute
        fast, state = descend(
            objective, values, fast, self.adapter, steps, *given, first_order=first_order, recompute=again
        )
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support")), state

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on `batch`, averaged over a regularizer's draws, and what to add to the state."""
        losses, state = [], Params()
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw))
            losses.append(self.criterion(prediction, batch.y))
        return sum_of(losses) / len(losses), state

    def query_loss(self, values: Params, fast: Params, task: Task, key: Key, state: Params) -> tuple[Tensor, Aux]:
        """Return the task loss on the query set under the adapted entries, with the score as a figure."""
        at = Pass(key, self.config.steps, "query")
        prediction, more = self.model.observe(values | advanced(values, state) | fast, task.query.x, at)
        figures = {"score": score(self.spec.kind, prediction, task.query.y).detach()}
        return self.criterion(prediction, task.query.y), Aux(figures, added(state, more))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted weights."""
        if steps is None:
            steps = self.config.test_steps if key is None else self.config.steps
        return self.descend(values, support, steps, key, first_order=self.first_order)[0]

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]`."""
        return self.model(values | fast, x, Pass(key, self.config.steps, "query"))


class Chain:
    """Adapters applied one after another, itself an adapter; each keeps its entries under its own name."""

    def __init__(self, adapters: Mapping[str, GradientTransform]) -> None:
        self.adapters = dict(adapters)

    def init(self, params: Params) -> Params:
        """Return every adapter's entries, prefixed by its name."""
        return self._joined({name: adapter.init(params) for name, adapter in self.adapters.items()})

    def start(self, meta: Params, params: Params) -> Params:
        """Return every adapter's first state, prefixed by its name."""
        return self._joined({name: a.start(select(meta, name), params) for name, a in self.adapters.items()})

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return the last adapter's output, each adapter's output being the next one's gradient, and the new state."""
        states = {}
        for name, adapter in self.adapters.items():
            grads, states[name] = adapter.update(select(meta, name), grads, select(state, name), params, step)
        return grads, self._joined(states)

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what each adapter adds to its `state.` entries."""
        return self._joined({n: a.carry(select(meta, n), select(state, n)) for n, a in self.adapters.items()})

    @staticmethod
    def _joined(parts: Mapping[str, Params]) -> Params:
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}


# `(values, step, *given)` to the support loss and what to add to the `state.` entries.
Objective = Callable[..., tuple[Tensor, Params]]


def descend(
    objective: Objective,
    values: Params,
    fast: Params,
    adapter: GradientTransform,
    steps: int,
    *given: Tensor,
    first_order: bool = False,
    recompute: bool = False,
) -> tuple[Params, Params]:
    """Adapt the entries `fast` of `values` for a number of steps; return (adapted entries, what to add to the state).

    `objective(values, step, *given)` returns the support loss and what to add to the `state.` entries. With
    `first_order` the inner gradients are constants: no second-order graph is built, the adapted weights keep the
    identity as Jacobian. With `recompute` each step is done again for the meta-gradient, instead of being kept: memory
    hardly grows with the steps; `given` must then hold every tensor that the objective uses beside the values.
    """
    meta = select(values, "adapters")
    base = detached(values) if first_order else values
    differentiable = not first_order and torch.is_grad_enabled()
    state, total = adapter.start(meta, fast), Params()

    def once(
        base: Params, meta: Params, fast: Params, state: Params, total: Params, step: int, *given: Tensor
    ) -> tuple[Params, Params, Params]:
        seen = base | advanced(base, total)
        at = detached(fast) if first_order else fast
        grads, delta = gradient(lambda p: objective(seen | p, step, *given), at, differentiable=differentiable)
        updates, state = adapter.update(meta, grads, state, fast, step)
        fast = {name: value - updates[name] for name, value in fast.items()}
        return fast, state, added(total, detached(delta))

    for step in range(steps):
        if recompute and differentiable:
            now = partial(_at_step, once, step)
            fast, state, total = recompute_in_backward(now, base, meta, fast, state, total, *given)
        else:
            fast, state, total = once(base, meta, fast, state, total, step, *given)
    return fast, added(total, prefixed("adapters", adapter.carry(meta, state)))


def _at_step(once: Callable[..., Any], step: int, *arguments: Any) -> Any:
    return once(*arguments[:5], step, *arguments[5:])
