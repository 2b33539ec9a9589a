"""Gradient descent on the support loss of a task, chains of gradient transforms, and how the result is differentiated.

How an inner loop is differentiated, its adjoint, is independent of the learner and of the adapter. The idea to keep the
two apart is that of optimistix (Rader, Lyons, Kidger 2024, arXiv 2402.09983).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad

from metaforge.authoring.functional import add_params, advance_state, detach_params, gradient, prefixed, select, sum_of
from metaforge.authoring.keys import fold_in
from metaforge.authoring.protocols import AdapterTags, GradientTransform, InnerStep, Key, Params
from metaforge.authoring.updates import updated
from metaforge.kernels.implicit import Solver, implicit_solution, solver_called
from metaforge.kernels.recompute import recompute_in_backward

Objective = Callable[..., tuple[Tensor, Params]]
"""A function of `(values, step, *inputs)` that returns the support loss and what to add to the `state.` entries."""


@dataclass(frozen=True)
class Adjoint:
    """How the result of an inner loop is differentiated with respect to the values.

    - `unroll`: through every inner step, whose activations are kept.
    - `recompute`: as `unroll`, but each step is computed again in the backward pass: less memory, more time.
    - `first-order`: the gradients of the inner steps are treated as constants.
    - `implicit`: as the solution of the equation that says that the gradient of the support loss is zero. The memory
      does not grow with the number of steps. It is exact only where the inner loop has converged to a minimum, and
      independent of the path there: what the adapter meta-learns gets no gradient.

    Attributes:
        method: One of the four.
        solver: How `implicit` solves its linear system: conjugate gradients (`cg`) or residuals (`cr`), Neumann series.
        solver_steps: Steps of the solver; each is a product of the Hessian with a vector.
        solver_rate: Rate of the Neumann series, less than 2 divided by the largest eigenvalue of the Hessian.

    Example:
        >>> from metaforge.authoring import Adjoint
        >>> Adjoint("implicit", solver_steps=10).constant
        True
    """

    method: Literal["unroll", "recompute", "first-order", "implicit"] = "unroll"
    solver: Literal["cg", "cr", "neumann"] = "cg"
    solver_steps: int = 5
    solver_rate: float = 0.1

    @property
    def constant(self) -> bool:
        """Whether the gradients of the inner steps are constants for the meta-gradient."""
        return self.method in ("first-order", "implicit")


UNROLL = Adjoint()


def descend(
    objective: Objective,
    values: Params,
    fast: Params,
    adapter: GradientTransform,
    steps: int,
    *inputs: Tensor,
    adjoint: Adjoint = UNROLL,
    proximal: float = 0.0,
) -> tuple[Params, Params]:
    """Minimise an objective with `steps` updates of an adapter.

    Args:
        objective: Returns the support loss and what to add to the `state.` entries, given `(values, step, *inputs)`.
        values: All values that the objective reads; those of the adapter are the entries `adapters.<name>`.
        fast: The parameters to adapt, at their start. They replace the entries of `values` that have their names.
        adapter: Returns what is subtracted from the parameters, given their gradients.
        steps: Number of inner steps.
        *inputs: Tensors that are passed to the objective.
        adjoint: How the result is differentiated. Under `recompute` and `implicit` the objective must read no tensors
            but the values and `inputs`.
        proximal: The factor λ of the term λ/2 ‖φ - θ‖², which is added to the objective: φ are the parameters, θ
            their start.

    Returns:
        The adapted parameters, and what to add to the `state.` entries.

    Raises:
        ContractError: The updates of an adapter do not have the names and shapes of the parameters.

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
    loop = InnerLoop(objective, adapter, adjoint, proximal, torch.is_grad_enabled())
    reached = deque(loop.run(values, fast, steps, *inputs), maxlen=1).pop()
    return loop.result(values, fast, steps, reached, *inputs)


def iterates(
    objective: Objective,
    values: Params,
    fast: Params,
    adapter: GradientTransform,
    steps: int,
    *inputs: Tensor,
    adjoint: Adjoint = UNROLL,
    proximal: float = 0.0,
) -> list[tuple[Params, Params]]:
    """Return what `descend` returns after 0, 1, …, `steps` steps, from one pass through the inner loop.

    Args:
        objective: As for `descend`, like all other arguments.
        values: All values that the objective reads.
        fast: The parameters to adapt.
        adapter: Returns what is subtracted.
        steps: Number of inner steps.
        *inputs: Tensors for the objective.
        adjoint: How each result is differentiated.
        proximal: Factor of the proximal term.

    Returns:
        The adapted parameters and what to add to the `state.` entries, for each number of steps.

    Raises:
        ContractError: As for `descend`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import GradientTransform, iterates
        >>> class Descent(GradientTransform):
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.25 * g for name, g in grads.items()}, state
        >>> values = {"w": torch.tensor(1.0)}
        >>> [float(fast["w"]) for fast, _ in iterates(lambda v, step: (v["w"] ** 2, {}), values, values, Descent(), 2)]
        [1.0, 0.5, 0.25]
    """
    loop = InnerLoop(objective, adapter, adjoint, proximal, torch.is_grad_enabled())
    path = enumerate(loop.run(values, fast, steps, *inputs))
    return [loop.result(values, fast, number, reached, *inputs) for number, reached in path]


@dataclass(frozen=True)
class InnerLoop:
    """The inner steps of `descend`, whose arguments it holds; `tracked` says whether a gradient is wanted."""

    objective: Objective
    adapter: GradientTransform
    adjoint: Adjoint
    proximal: float
    tracked: bool

    def run(
        self, values: Params, start: Params, steps: int, *inputs: Tensor
    ) -> Iterator[tuple[Params, Params, Params]]:
        """Yield parameters, the adapter's state and changes of the `state.` entries after 0, 1, …, `steps` steps."""
        implicit, recompute = self.adjoint.method == "implicit", self.adjoint.method == "recompute"
        meta, fast = select(values, "adapters"), start
        base = detach_params(values) if self.adjoint.constant else values
        with torch.no_grad() if implicit else nullcontext():
            state, changes = self.adapter.start(meta, fast), Params()
        yield fast, state, changes
        for number in range(steps):
            function = partial(self.step, number)
            if recompute and self.tracked:
                function = partial(recompute_in_backward, function)
            # Not around `yield`, which would leave it in force for the caller.
            with torch.no_grad() if implicit else nullcontext():
                fast, state, changes = function(base, meta, start, fast, state, changes, *inputs)
            yield fast, state, changes

    def result(
        self, values: Params, start: Params, steps: int, reached: tuple[Params, Params, Params], *inputs: Tensor
    ) -> tuple[Params, Params]:
        """Return what `descend` returns where `run` has reached this after so many steps."""
        fast, state, changes = reached
        if self.adjoint.method == "implicit" and self.tracked and steps:
            slope = partial(self.slope, steps - 1)
            current = values | advance_state(values, changes)
            fast = implicit_solution(slope, detach_params(fast), solver_of(self.adjoint), current, start, *inputs)
        return fast, add_params(changes, prefixed("adapters", self.adapter.carry(select(values, "adapters"), state)))

    def step(
        self,
        number: int,
        base: Params,
        meta: Params,
        start: Params,
        fast: Params,
        state: Params,
        changes: Params,
        *inputs: Tensor,
    ) -> tuple[Params, Params, Params]:
        """Return the parameters, the adapter's state and the changes of the `state.` entries after an inner step."""
        current = base | advance_state(base, changes)
        constant = self.adjoint.constant
        grads, (loss, change) = gradient(
            lambda p: self.total(number, p, current, start, *inputs),
            detach_params(fast) if constant else fast,
            differentiable=self.tracked and not constant,
        )
        origin = detach_params(start) if constant else start
        value = loss.detach() if constant else loss
        step = InnerStep(number, value, lambda p: self.total(number, p, current, origin, *inputs)[0])
        if isinstance(self.adapter, Chain):  # It compares the updates of each of its adapters itself.
            updates, state = self.adapter.update(meta, grads, state, fast, step)
        else:
            updates, state = updated(self.adapter, "", meta, grads, state, fast, step)
        fast = {name: value - updates[name] for name, value in fast.items()}
        return fast, state, add_params(changes, detach_params(change))

    def slope(self, number: int, fast: Params, base: Params, start: Params, *inputs: Tensor) -> Params:
        """Return the gradient of the support loss with its proximal term, which is zero at the end of the loop."""
        result: Params = grad(lambda p: self.total(number, p, base, start, *inputs)[0])(fast)
        return result

    def total(
        self, number: int, fast: Params, base: Params, start: Params, *inputs: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Params]]:
        """Return the support loss with its proximal term; and without it, with the changes of the `state.` entries."""
        loss, change = self.objective(base | fast, number, *inputs)
        if not self.proximal:
            return loss, (loss, change)
        distance = sum_of((value - start[name]).square().sum() for name, value in fast.items())
        return loss + 0.5 * self.proximal * distance, (loss, change)


def solver_of(adjoint: Adjoint) -> Solver:
    """Return the solver of the linear system of an implicit adjoint."""
    return solver_called(adjoint.solver, adjoint.solver_steps, adjoint.solver_rate)


class Chain(GradientTransform):
    """Gradient transforms applied one after another, which is again a gradient transform.

    Args:
        adapters: The transforms by name, in order. The values and states of each are prefixed with its name.

    Attributes:
        tags: The tags of all transforms together.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Chain, GradientTransform, InnerStep
        >>> class Scale(GradientTransform):
        ...     def __init__(self, factor):
        ...         self.factor = factor
        ...
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: self.factor * g for name, g in grads.items()}, state
        >>> chain = Chain({"double": Scale(2.0), "rate": Scale(0.1)})
        >>> step = InnerStep(0, loss=torch.tensor(1.0))
        >>> updates, _ = chain.update({}, {"w": torch.tensor(3.0)}, {}, {}, step)
        >>> round(float(updates["w"]), 3)
        0.6
    """

    def __init__(self, adapters: Mapping[str, GradientTransform]) -> None:
        self.adapters = dict(adapters)
        tags = [adapter.tags for adapter in self.adapters.values()]
        self.tags = AdapterTags(any(own.detaches for own in tags), rate=any(own.rate for own in tags))

    def init(self, params: Params, key: Key) -> Params:
        """Return what all adapters meta-learn for `params`, each prefixed with its name."""
        return self._joined({name: adapter.init(params, fold_in(key, name)) for name, adapter in self.adapters.items()})

    def start(self, meta: Params, params: Params) -> Params:
        """Return the states with which all adapters start a task, each prefixed with its name."""
        return self._joined({name: a.start(select(meta, name), params) for name, a in self.adapters.items()})

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the last adapter's updates and all new states; each adapter's output is the next one's gradient."""
        states = {}
        for name, adapter in self.adapters.items():
            own, before = select(meta, name), select(state, name)
            grads, states[name] = updated(adapter, name, own, grads, before, params, step)
        return grads, self._joined(states)

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what all adapters add to their `state.` entries when a task's adaptation ends."""
        return self._joined({n: a.carry(select(meta, n), select(state, n)) for n, a in self.adapters.items()})

    @staticmethod
    def _joined(parts: Mapping[str, Params]) -> Params:
        return {key: value for name, part in parts.items() for key, value in prefixed(name, part).items()}
