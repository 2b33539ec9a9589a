"""The protocols of gradient transforms and of adapters, which are gradient transforms that a plugin offers."""

from __future__ import annotations

from typing import Any, Protocol

from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.types import Params


class GradientTransform(Protocol):
    """Maps the gradients of an inner step to updates, in the manner of optax; it can have parameters to meta-learn.

    In a chain, each transform's output is the next one's gradient. The inner loop subtracts the last output from the
    parameters. The methods other than `update` return `{}` by default.

    Example:
        >>> import torch
        >>> from metaforge.authoring import GradientTransform
        >>> class Descent(GradientTransform):
        ...     "Gradient descent with the learning rate 0.1."
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.1 * grad for name, grad in grads.items()}, state
        >>> updates, state = Descent().update({}, {"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, step=0)
        >>> updates
        {'w': tensor([0.1000, 0.1000])}
    """

    def init(self, params: Params) -> Params:
        """Return the transform's entries of the learner's values.

        Args:
            params: The parameters that the inner loop adapts.

        Returns:
            Parameters to meta-learn and `state.` entries to carry from task to task, under names of the transform's
            choice; a chain adds a prefix to them.
        """
        return {}

    def start(self, meta: Params, params: Params) -> Params:
        """Return the state that a task's adaptation starts with, such as a velocity of zero.

        Args:
            meta: The entries that `init` returned, with their present values.
            params: The parameters that the inner loop adapts.

        Returns:
            Tensors by name; this state lives for one task.
        """
        return {}

    def update(self, meta: Params, grads: Params, state: Params, params: Params, step: int) -> tuple[Params, Params]:
        """Return the update of one inner step.

        Args:
            meta: The entries that `init` returned, with their present values.
            grads: The gradient of the support loss, or the output of the previous transform of a chain.
            state: The state after the previous inner step.
            params: The parameters before this step.
            step: Number of the inner step, from 0.

        Returns:
            What to subtract from `params`, under the same names, and the new state.
        """
        ...

    def carry(self, meta: Params, state: Params) -> Params:
        """Return what to add to the transform's `state.` entries after a task's adaptation.

        Args:
            meta: The entries that `init` returned, with their present values.
            state: The state after the last inner step.

        Returns:
            Changes of the `state.` entries, by name.
        """
        return {}


class Adapter(Component, GradientTransform, Protocol):
    """A gradient transform that a plugin offers. The chain of a run's adapters is a gradient transform again.

    Args:
        config: The adapter's validated options, an instance of its `Config`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Adapter, Options
        >>> class LearnedRate(Adapter):
        ...     "Gradient descent with one meta-learned learning rate per tensor."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def init(self, params):
        ...         return {f"rate.{name}": value.new_tensor(0.1) for name, value in params.items()}
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: meta[f"rate.{name}"] * grad for name, grad in grads.items()}, state
        >>> adapter, params = LearnedRate(Options()), {"w": torch.zeros(2)}
        >>> meta = adapter.init(params)
        >>> adapter.update(meta, {"w": torch.ones(2)}, adapter.start(meta, params), params, step=0)
        ({'w': tensor([0.1000, 0.1000])}, {})
    """

    def __init__(self, config: Any) -> None: ...
