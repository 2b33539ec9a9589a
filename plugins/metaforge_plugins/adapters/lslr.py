"""LSLR: a meta-learned learning rate for every parameter tensor and inner step, the rates of MAML++.

Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019 (arXiv 1810.09502), section 4.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from metaforge.authoring import Adapter, InnerStep, Key, Options, Params


class LSLROptions(Options):
    """Options of LSLR."""

    steps: int = Field(
        3, ge=1, le=1000, description="inner steps that have rates of their own; the last ones serve for further steps"
    )
    lr: float = Field(0.1, ge=-10, le=10, description="initial value of all rates; rates may become negative")


class LSLR(Adapter):
    """Gradient descent with a meta-learned learning rate for every parameter tensor and inner step.

    In a chain the gradients are the outputs of the adapter before it, which may be preconditioned.

    Departures from the paper:
    - Rates of a layer. The paper has one rate per layer and inner step. Here the weight and the bias of a layer have
      one each, as in the authors' code. No option changes that.
    - Initial rates in regression, which the paper does not have: suggested is 0.01, the rate of MAML on sinusoids.
    """

    Config = LSLROptions
    reference: ClassVar[str] = "Antoniou, Edwards, Storkey 2019, arXiv 1810.09502, section 4"
    defaults: ClassVar = {
        "classification": {"learner": {"steps": 3, "test_steps": 3}, "adapters": {"lslr": {"steps": 3, "lr": 0.1}}},
        "multi-label": {"learner": {"steps": 3, "test_steps": 3}, "adapters": {"lslr": {"steps": 3, "lr": 0.1}}},
        "regression": {"learner": {"steps": 3, "test_steps": 3}, "adapters": {"lslr": {"steps": 3, "lr": 0.01}}},
    }

    def __init__(self, config: LSLROptions) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return the learning rates `rate.<name>` `[steps]`, all equal, one per inner step of each parameter tensor."""
        return {f"rate.{name}": value.new_full((self.config.steps,), self.config.lr) for name, value in params.items()}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α_{j,k} g_j of the parameter tensors j in step k, and the state unchanged."""
        k = min(step.number, self.config.steps - 1)
        return {name: meta[f"rate.{name}"][k] * g for name, g in grads.items()}, state
