"""The protocol of regularizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from metaforge.authoring.protocols.component import Component
from metaforge.authoring.protocols.types import Key, Params, Pass


class Regularizer(Component, Protocol):
    """Acts on activations, on parameters, or on the losses of a batch of tasks; by default every method does nothing.

    Args:
        config: The regularizer's validated options, an instance of its `Config`.

    Attributes:
        terms: Names of the terms that `combine` reads besides the losses (`Aux.terms`). A run is refused if its learner
            does not give them (`Tags.terms`).

    Example:
        >>> import torch
        >>> from metaforge.authoring import Options, Regularizer, split_state, sum_of
        >>> class SquaredNorm(Regularizer):
        ...     "Adds a multiple of the squared norm of all parameters to the outer loss."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def penalty(self, values):
        ...         params, _ = split_state(values)
        ...         return 0.1 * sum_of(value.square().sum() for value in params.values())
        >>> SquaredNorm(Options()).penalty({"w": torch.tensor([1.0, 2.0]), "state.mean": torch.ones(2)})
        tensor(0.5000)
    """

    terms: frozenset[str] = frozenset()

    def __init__(self, config: Any) -> None: ...

    def needs_inner_loop(self) -> bool:
        """Return whether the regularizer, with its options, has an effect only in an inner loop.

        A run whose learner has no inner loop rejects such a regularizer.
        """
        return False

    def attach(self, modules: Mapping[str, nn.Module]) -> None:
        """Store what the regularizer needs of the network's structure. A model calls this once, when it is built.

        Args:
            modules: The modules of the network by name, in the order of registration.
        """
        return

    def init(self, modules: Mapping[str, nn.Module], key: Key) -> Params:
        """Return the parameters that the regularizer meta-learns, and its `state.` entries.

        Args:
            modules: The modules of the network, by name.
            key: The key of the initial values.

        Returns:
            Tensors under names of the regularizer's choice; the model adds a prefix to them.
        """
        return {}

    def taps(self, name: str, module: nn.Module) -> bool:
        """Return whether `tap` is called with the output of a module.

        Args:
            name: The module's name in the network.
            module: The module.
        """
        return False

    def tap(self, meta: Params, name: str, module: nn.Module, inputs: Tensor, output: Tensor, at: Pass) -> Tensor:
        """Return the activation that replaces a module's output.

        Args:
            meta: The parameters that `init` returned, with their present values.
            name: The module's name in the network.
            module: The module.
            inputs: The module's input `[n, ...]`.
            output: The module's output `[n, ...]`.
            at: Which forward pass this is.

        Returns:
            A tensor of the shape of `output`.
        """
        return output

    def draws(self, key: Key | None) -> int:
        """Return the number of draws of noise over which the support loss of an inner step is averaged.

        Args:
            key: The task's key; None in evaluation.
        """
        return 1

    def penalty(self, values: Params) -> Tensor | None:
        """Return a scalar that is added to the outer loss once per outer step, or None.

        Args:
            values: The learner's parameters and state entries.
        """
        return None

    def combine(self, losses: Tensor, terms: Params) -> Tensor | None:
        """Return a scalar that is added to the mean of the task losses, or None.

        This is the only method that sees more than one task.

        Args:
            losses: The losses of the batch `[tasks]`.
            terms: The terms that the class attribute `terms` names, each `[tasks]`.
        """
        return None
