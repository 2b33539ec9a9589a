"""Meta-SGD: a meta-learned learning rate for every weight.

Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017 (arXiv 1707.09835).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from metaforge.authoring import Adapter, InnerStep, Key, Options, Params, fold_in, uniform

Rate = Annotated[float, Field(ge=-10, le=10)]


class MetaSGDOptions(Options):
    """Options of Meta-SGD."""

    lr: Rate | tuple[Rate, Rate] = Field(
        (0.005, 0.1),
        description="initial learning rate of every weight, or the range from which each is drawn; rates may become "
        "negative",
    )


class MetaSGD(Adapter):
    """Gradient descent with a meta-learned learning rate for every weight.

    Departures from the paper:
    - Scale of the loss. The rates begin in the paper's range, which is for the loss that its authors take; in
      classification ours is the mean over the examples. The rates are learned, so only the beginning differs.
    """

    Config = MetaSGDOptions
    reference: ClassVar[str] = "Li, Zhou, Chen, Li 2017, arXiv 1707.09835, equation 2"

    # One step, in training and in evaluation: further steps with rates that were learned for one can diverge.
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        kind: {"learner": {"steps": 1, "test_steps": 1}} for kind in ("classification", "multi-label", "regression")
    }

    def __init__(self, config: MetaSGDOptions) -> None:
        self.low, self.high = config.lr if isinstance(config.lr, tuple) else (config.lr, config.lr)

    def init(self, params: Params, key: Key) -> Params:
        """Return the learning rates `rate.<name>`, each of the shape of its parameter and drawn from the range."""
        return {
            f"rate.{name}": self.low + (self.high - self.low) * uniform(fold_in(key, name), value.shape, value.dtype)
            for name, value in params.items()
        }

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α ∘ g, and the state unchanged."""
        return {name: meta[f"rate.{name}"] * g for name, g in grads.items()}, state
