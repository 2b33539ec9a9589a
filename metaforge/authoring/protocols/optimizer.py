"""The protocols of outer optimisers and of schedules of their learning rate."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch

from metaforge.authoring.protocols.component import Component


class Optimizer(Component, Protocol):
    """Builds the optimiser that updates a learner's parameters from meta-gradients.

    Args:
        config: The optimiser's validated options, an instance of its `Config`.

    Attributes:
        weight_decay: The weight decay of a run that does not set `train.weight_decay`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import Optimizer, Options
        >>> class Averaged(Optimizer):
        ...     "SGD that also keeps the average of its iterates."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def build(self, groups):
        ...         return torch.optim.ASGD(groups)
        >>> groups = [{"params": [torch.ones(2)], "lr": 0.1, "weight_decay": 0.0}]
        >>> Averaged(Options()).build(groups).param_groups[0]["lr"]
        0.1
    """

    weight_decay: ClassVar[float] = 0.0

    def __init__(self, config: Any) -> None: ...

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return a new torch optimiser over all parameters of the groups.

        Before each step the engine sets `lr` of every group to its rate times the factor of the schedule, and sets the
        gradients. A checkpoint saves the optimiser's `state` and what steps change in its groups: tensors, numbers,
        strings, booleans and None. An optimiser that keeps anything else between steps, whose `step` needs a closure,
        or whose `step` draws from torch's global generator is rejected.

        An optimiser that decays weights has `weight_decay` among its `defaults`, as those of torch have. With another
        one, a run refuses a weight decay above 0.

        Args:
            groups: Parameter groups as torch takes them, each with `params` (a list of tensors), `lr` and
                `weight_decay`.
        """
        ...


class Schedule(Component, Protocol):
    """Says how the learning rate of the outer optimiser changes over a run.

    Args:
        config: The schedule's validated options, an instance of its `Config`.

    Attributes:
        uses_share: Whether the factor depends on `share`, that is, on the length of the run. If not, a run that is
            lengthened later equals one that had this length from the start.

    Example:
        >>> from metaforge.authoring import Options, Schedule
        >>> class InverseRoot(Schedule):
        ...     "A rate that falls with the square root of the number of steps."
        ...     Config = Options
        ...     uses_share = False
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def factor(self, step, share):
        ...         return (1 + step) ** -0.5
        >>> InverseRoot(Options()).factor(step=3, share=0.1)
        0.5
    """

    uses_share: ClassVar[bool] = True

    def __init__(self, config: Any) -> None: ...

    def factor(self, step: int, share: float) -> float:
        """Return what the learning rate of every group is multiplied by in the next outer step, at least 0.

        It is called anew for each step and depends on its arguments alone, so that a resumed run continues exactly.

        Args:
            step: The number of outer steps done, 0 before the first.
            share: The fraction of the run that is done, in [0, 1], by steps or by `train.budget`.
        """
        ...
