"""The inner loop: adapting the weights of a network by gradients of the support loss, and learners built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring.functional import (
    add_params,
    advance_state,
    detach_params,
    gradient,
    matching,
    prefixed,
    select,
    sum_of,
)
from metaforge.authoring.losses import criterion, score
from metaforge.authoring.model import ModelLearner
from metaforge.authoring.protocols import (
    Aux,
    Examples,
    GradientTransform,
    Key,
    NormPolicy,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
)
from metaforge.errors import ConfigError
from metaforge.kernels.recompute import recompute_in_backward


class InnerLoopOptions(Options):
    """Options of every learner with an inner loop.

    Example:
        >>> from metaforge.authoring import InnerLoopOptions
        >>> InnerLoopOptions(steps=5).test_steps
        3
    """

    steps: int = Field(1, ge=0, le=1000, description="inner steps in training")
    test_steps: int = Field(3, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("transductive", description="which statistics batch norm uses for queries")
    adapt: Literal["weights", "all"] = Field(
        "weights", description="parameters that the inner loop adapts: all but those of norm layers, or all"
    )
    recompute: bool = Field(
        False, description="recompute inner steps for the meta-gradient instead of storing them: less memory, more time"
    )


class InnerLoopLearner(ModelLearner):
    """Base class of learners that adapt a network's weights with an adapter on the support set.

    The network is the backbone with a linear head. A subclass defines `loss`, usually by `descend` and `query_loss`.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone and an adapter.

    Attributes:
        first_order: Whether the inner gradients are treated as constants, without second derivatives.
        adapter: The transform from gradients to updates.
        criterion: The task loss of (prediction, target).
        adapted: Names of the values that the inner loop adapts; none of them is frozen.

    Example:
        Differentiate through the inner loop; the gradient of `loss` is then the meta-gradient.

        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import (
        ...     Examples, GradientTransform, InnerLoopLearner, InnerLoopOptions, Parts, TaskShape, TaskSpec, make_key
        ... )
        >>> class SecondOrder(InnerLoopLearner):
        ...     Config = InnerLoopOptions
        ...
        ...     def loss(self, values, task, key):
        ...         fast, state = self.descend(values, task.support, self.config.steps, key)
        ...         return self.query_loss(values, fast, task, key, state)
        >>> class Descent(GradientTransform):
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.1 * g for name, g in grads.items()}, state
        >>> spec = TaskSpec("regression", x_shape=(1,), outputs=1, shape=TaskShape(ways=1, shots=2, queries=2))
        >>> parts = Parts(spec, backbone=lambda: nn.Linear(1, 4), adapter=Descent())
        >>> learner = SecondOrder(InnerLoopOptions(steps=2), parts)
        >>> values = learner.init(make_key(0))
        >>> fast = learner.adapt(values, Examples(torch.ones(2, 1), torch.ones(2, 1)))
        >>> learner.predict(values, fast, torch.ones(3, 1)).shape
        torch.Size([3, 1])
    """

    tags: ClassVar[Tags] = Tags(
        kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone", "adapter"}), adapts=True
    )
    first_order: ClassVar[bool] = False
    config: InnerLoopOptions
    adapter: GradientTransform
    criterion: Callable[[Tensor, Tensor], Tensor]
    adapted: tuple[str, ...]

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm, steps=config.steps, outputs=parts.spec.outputs)
        assert parts.adapter is not None, "the learner's tags do not name an adapter among its needs"
        self.adapter, self.criterion, self.steps = parts.adapter, criterion(parts.spec.kind), config.test_steps
        constant = self.model.norm_names if config.adapt == "weights" else frozenset[str]()
        names = [f"model.{name}" for name in self.model.names]
        constant |= {*matching(names, parts.frozen)}
        self.adapted = tuple(name for name in names if name not in constant)
        if not self.adapted and parts.frozen:
            raise ConfigError(
                "Every value that the inner loop would adapt is frozen.",
                where="train.freeze",
                remedy="freeze less, such as the body of the network without its head",
            )

    def init(self, key: Key) -> Params:
        """Return the values of the network and of the adapter; equal for equal keys."""
        values = super().init(key)
        return values | prefixed("adapters", self.adapter.init({name: values[name] for name in self.adapted}))

    def descend(self, values: Params, support: Examples, steps: int, key: Key | None) -> tuple[Params, Params]:
        """Adapt the network to a support set; the gradient flows through the steps unless `first_order` is set.

        Args:
            values: The learner's values.
            support: The support set.
            steps: Number of inner steps.
            key: The key of the task's noise, or None in evaluation.

        Returns:
            The adapted parameters, together with the statistics that batch norm uses for queries if they depend on the
            support set or the step; and what to add to the `state.` entries.
        """

        def objective(values: Params, step: int, x: Tensor, y: Tensor, *keys: Tensor) -> tuple[Tensor, Params]:
            return self.support_loss(values, Examples(x, y), step, *(keys or (None,)))

        start = {name: values[name] for name in self.adapted}
        inputs = support if key is None else (*support, key)
        options = {"first_order": self.first_order, "recompute": self.config.recompute}
        fast, state = descend(objective, values, start, self.adapter, steps, *inputs, **options)
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support")), state

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on `batch`, averaged over the draws, and the state changes of the last draw."""
        losses, state = [], Params()
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw))
            losses.append(self.criterion(prediction, batch.y))
        return sum_of(losses) / len(losses), state

    def query_loss(self, values: Params, fast: Params, task: Task, key: Key, state: Params) -> tuple[Tensor, Aux]:
        """Return the task loss on the query set with the adapted parameters, and the score as a metric.

        Args:
            values: The learner's values.
            fast: The adapted parameters.
            task: The task.
            key: The key of the task's noise.
            state: What the inner loop adds to the `state.` entries. The changes by the query pass are added to it.
        """
        at = Pass(key, self.config.steps, "query")
        prediction, change = self.model.observe(values | advance_state(values, state) | fast, task.query.x, at)
        metrics = {"score": score(self.spec.kind, prediction, task.query.y).detach()}
        return self.criterion(prediction, task.query.y), Aux(metrics, add_params(state, change))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted parameters after `steps` inner steps, by default `steps` or `test_steps` of the options.

        With a key, as in training, the default is the option `steps`; without a key it is `test_steps`.
        """
        if steps is None:
            steps = self.config.test_steps if key is None else self.config.steps
        return self.descend(values, support, steps, key)[0]

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]` for `x` `[n, *x_shape]`."""
        return self.model(values | fast, x, Pass(key, self.config.steps, "query"))


class Chain:
    """Gradient transforms applied one after another, which is again a gradient transform.

    Args:
        adapters: The transforms by name, in order. The values and states of each are prefixed with its name.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Chain, GradientTransform
        >>> class Scale(GradientTransform):
        ...     def __init__(self, factor):
        ...         self.factor = factor
        ...
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: self.factor * g for name, g in grads.items()}, state
        >>> chain = Chain({"double": Scale(2.0), "rate": Scale(0.1)})
        >>> updates, _ = chain.update({}, {"w": torch.tensor(3.0)}, {}, {}, 0)
        >>> round(float(updates["w"]), 3)
        0.6
    """

    def __init__(self, adapters: Mapping[str, GradientTransform]) -> None:
        self.adapters = dict(adapters)

    def init(self, params: Params) -> Params:
        """Return what all adapters meta-learn for `params`, each prefixed with its name."""
        return self._joined({name: adapter.init(params) for name, adapter in self.adapters.items()})

    def start(self, meta: Params, params: Params) -> Params:
        """Return the states with which all adapters start a task, each prefixed with its name."""
        return self._joined({name: a.start(select(meta, name), params) for name, a in self.adapters.items()})

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return the last adapter's updates and all new states; each adapter's output is the next one's gradient."""
        states = {}
        for name, adapter in self.adapters.items():
            grads, states[name] = adapter.update(select(meta, name), grads, select(state, name), params, step)
        return grads, self._joined(states)

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what all adapters add to their `state.` entries when a task's adaptation ends."""
        return self._joined({n: a.carry(select(meta, n), select(state, n)) for n, a in self.adapters.items()})

    @staticmethod
    def _joined(parts: Mapping[str, Params]) -> Params:
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}


Objective = Callable[..., tuple[Tensor, Params]]
"""A function of `(values, step, *inputs)` that returns the support loss and what to add to the `state.` entries."""


def descend(
    objective: Objective,
    values: Params,
    fast: Params,
    adapter: GradientTransform,
    steps: int,
    *inputs: Tensor,
    first_order: bool = False,
    recompute: bool = False,
) -> tuple[Params, Params]:
    """Minimise an objective with `steps` updates of an adapter.

    Args:
        objective: Returns the support loss and what to add to the `state.` entries, given `(values, step, *inputs)`.
        values: All values that the objective reads; those of the adapter are the entries `adapters.<name>`.
        fast: The entries of `values` that are adapted.
        adapter: Returns what is subtracted from the parameters, given their gradients.
        steps: Number of inner steps.
        *inputs: Tensors that are passed to the objective.
        first_order: Treat the inner gradients as constants, so that the graph holds no second derivatives.
        recompute: Recompute each step in the backward pass instead of storing its activations (gradient checkpointing).
            Besides the values, the objective must then read no tensors but `inputs`.

    Returns:
        The adapted entries, and what to add to the `state.` entries.

    Example:
        >>> import torch
        >>> from metaforge.authoring import GradientTransform, descend
        >>> class Descent(GradientTransform):
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.25 * g for name, g in grads.items()}, state
        >>> values = {"w": torch.tensor(1.0)}
        >>> descend(lambda values, step: (values["w"] ** 2, {}), values, values, Descent(), 2)[0]
        {'w': tensor(0.2500)}
    """
    meta = select(values, "adapters")
    base = detach_params(values) if first_order else values
    differentiable = not first_order and torch.is_grad_enabled()
    state, changes = adapter.start(meta, fast), Params()

    def inner_step(
        step: int, base: Params, meta: Params, fast: Params, state: Params, changes: Params, *inputs: Tensor
    ) -> tuple[Params, Params, Params]:
        current = base | advance_state(base, changes)
        at = detach_params(fast) if first_order else fast
        grads, change = gradient(lambda p: objective(current | p, step, *inputs), at, differentiable=differentiable)
        updates, state = adapter.update(meta, grads, state, fast, step)
        fast = {name: value - updates[name] for name, value in fast.items()}
        return fast, state, add_params(changes, detach_params(change))

    for step in range(steps):
        function = partial(inner_step, step)
        if recompute and differentiable:
            function = partial(recompute_in_backward, function)
        fast, state, changes = function(base, meta, fast, state, changes, *inputs)
    return fast, add_params(changes, prefixed("adapters", adapter.carry(meta, state)))
