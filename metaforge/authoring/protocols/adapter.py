"""The protocols of gradient transforms and of adapters, which are gradient transforms that a plugin offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.types import Key, Params


class InnerStep(NamedTuple):
    """Which inner step an update is for.

    Attributes:
        number: Number of the inner step, from 0.
        loss: The support loss before the update, a scalar. Gradients flow through it, unless the inner loop treats
            its gradients as constants (first order).
        objective: The support loss and its proximal term as a function of the parameters, for an adapter that needs
            more than the gradient: a line search, or products of the Hessian with vectors. An inner loop always gives
            it. Where the gradients are constants (first order), what it returns still depends on the parameters that
            it is called with: an adapter that calls it with detached ones has the tag `detaches`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import InnerStep
        >>> InnerStep(2, torch.tensor(0.5)).number
        2
    """

    number: int
    loss: Tensor
    objective: Callable[[Params], Tensor] | None = None


@dataclass(frozen=True)
class AdapterTags:
    """Static facts about a gradient transform.

    Attributes:
        detaches: Whether the updates, or a part of them, are constants for the meta-gradient, which then leaves out
            their derivatives.
        rate: Whether the updates have the size of a step. A transform that only changes the direction of a gradient,
            such as a preconditioner, has none, and a run is refused if no adapter of its chain has one.

    Example:
        >>> from metaforge.authoring import AdapterTags
        >>> AdapterTags().detaches
        False
    """

    detaches: bool = False
    rate: bool = True


class GradientTransform(Protocol):
    """Maps the gradients of an inner step to updates, in the manner of optax; it can have parameters to meta-learn.

    In a chain, each transform's output is the next one's gradient. The inner loop subtracts the last output from the
    parameters. The methods other than `update` return `{}` by default.

    Attributes:
        tags: Static facts about the transform.

    Example:
        >>> import torch
        >>> from metaforge.authoring import GradientTransform, InnerStep
        >>> class Descent(GradientTransform):
        ...     "Gradient descent with the learning rate 0.1."
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.1 * grad for name, grad in grads.items()}, state
        >>> step = InnerStep(0, loss=torch.tensor(1.0))
        >>> updates, state = Descent().update({}, {"w": torch.ones(2)}, {}, {"w": torch.zeros(2)}, step)
        >>> updates
        {'w': tensor([0.1000, 0.1000])}
    """

    tags: AdapterTags = AdapterTags()

    def init(self, params: Params, key: Key) -> Params:
        """Return the transform's entries of the learner's values.

        Args:
            params: The parameters that the inner loop adapts, at the beginning of the training. They include
                parameters that the learner makes anew for each task, such as a head; only the names, shapes and dtypes
                of these mean anything.
            key: The key of the initial values; equal keys give equal values.

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

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the update of one inner step.

        Args:
            meta: The entries that `init` returned, with their present values.
            grads: The gradient of the support loss, or the output of the previous transform of a chain.
            state: The state after the previous inner step.
            params: The parameters before this step.
            step: The number of the inner step, from 0, the support loss, and the objective as a function.

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
        >>> from metaforge.authoring import Adapter, InnerStep, Options, make_key
        >>> class LearnedRate(Adapter):
        ...     "Gradient descent with one meta-learned learning rate per tensor."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def init(self, params, key):
        ...         return {f"rate.{name}": value.new_tensor(0.1) for name, value in params.items()}
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: meta[f"rate.{name}"] * grad for name, grad in grads.items()}, state
        >>> adapter, params = LearnedRate(Options()), {"w": torch.zeros(2)}
        >>> meta = adapter.init(params, make_key(0))
        >>> step = InnerStep(0, loss=torch.tensor(1.0))
        >>> adapter.update(meta, {"w": torch.ones(2)}, adapter.start(meta, params), params, step)
        ({'w': tensor([0.1000, 0.1000])}, {})
    """

    def __init__(self, config: Any) -> None: ...
