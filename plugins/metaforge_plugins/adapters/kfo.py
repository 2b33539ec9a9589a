"""KFO: a meta-learned Kronecker-factored map of the gradient, which the inner loop adapts to the task, too.

Arnold, Iqbal, Sha, "When MAML Can Adapt Fast and How to Assist When It Cannot", AISTATS 2021 (arXiv 1910.13603).
Details follow the authors' code, Sha-Lab/kfo and learnables/learn2learn.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad

from metaforge.authoring import Adapter, InnerStep, Key, Options, Params, prefixed, select, sum_of


class KFOOptions(Options):
    """Options of KFO."""

    lr: float = Field(0.1, ge=0, le=1e3, description="inner learning rate of the parameters and of the factors")
    adapt_factors: bool = Field(True, description="whether the inner loop adapts the factors to the task, too")


class KFO(Adapter):
    """Multiplies the gradient by meta-learned positive semi-definite matrices, which the inner loop adapts, too.

    The update of a weight is α (LᵀL) G (RᵀR) (a Kronecker-factored meta-optimiser). From the second inner step on, L
    and R first take a step of descent themselves: on the support loss, as a function of the update that they made last.
    All factors start as the identity.

    Weight decay of the outer optimiser pulls the factors to 0 and not to the identity, which stops adaptation;
    `train.groups."adapters.kfo.*".weight_decay=0` exempts them.

    Departures from the paper:
    - Form. The meta-optimiser of a tensor is one linear map without a bias, as in the authors' code; deeper ones are
      not offered. No option changes that.
    - Inner loop. The authors' code takes 5 inner steps of rate 0.1; suggested are 2, of rate 0.4 for classification and
      0.01 for regression. `learner.steps=5`, `learner.test_steps=5` and `adapters.kfo.lr=0.1` give theirs.
    - Training. The authors' code takes 40,000 outer steps of Adam with learning rate 3e-3 on 16 tasks; suggested are
      the settings of the learner. `train.steps`, `train.lr` and `train.tasks` give theirs.
    """

    Config = KFOOptions
    reference: ClassVar[str] = "Arnold, Iqbal, Sha 2021, arXiv 1910.13603"
    defaults: ClassVar = {
        "classification": {"adapters": {"kfo": {"lr": 0.4}}, "learner": {"steps": 2, "test_steps": 2}},
        "multi-label": {"adapters": {"kfo": {"lr": 0.4}}, "learner": {"steps": 2, "test_steps": 2}},
        "regression": {"adapters": {"kfo": {"lr": 0.01}}, "learner": {"steps": 2, "test_steps": 2}},
    }

    def __init__(self, config: KFOOptions) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return the identity matrices `left.<name>` and `right.<name>`."""
        meta: Params = {}
        for name, value in params.items():
            for side, size in zip(("left", "right"), matrix(value).shape[-2:], strict=True):
                meta[f"{side}.{name}"] = torch.diag(value.new_ones(size))
        return meta

    def start(self, meta: Params, params: Params) -> Params:
        """Return the factors of the task, and gradients of zero as those of the last step."""
        return meta | {f"last.{name}": torch.zeros_like(value) for name, value in params.items()}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates α (LᵀL) G (RᵀR), and the state with adapted factors and these gradients."""
        factors = {name: state[name] for name in meta}
        # The first step follows no update of the factors.
        if self.config.adapt_factors and step.number > 0:
            factors = self.adapted(factors, select(state, "last"), grads)
        updates = {name: self.config.lr * transformed(factors, name, g) for name, g in grads.items()}
        return updates, factors | prefixed("last", grads)

    def adapted(self, factors: Params, last: Params, grads: Params) -> Params:
        """Return φ − α ∇_φ L_S(θ_k), where φ are the factors and θ_k = θ_{k−1} − α u(φ, g_{k−1}).

        That gradient is −α ∇_φ ⟨u(φ, g_{k−1}), g_k⟩, because g_k is the gradient of the support loss at θ_k.
        """

        def product(factors: Params) -> Tensor:
            return sum_of((transformed(factors, name, last[name]) * g).sum() for name, g in grads.items())

        ascent: Params = grad(product)(factors)
        return {name: value + self.config.lr**2 * ascent[name] for name, value in factors.items()}


def transformed(factors: Params, name: str, gradient: Tensor) -> Tensor:
    """Return (LᵀL) G (RᵀR) for one tensor, of the same shape."""
    left, right = factors[f"left.{name}"], factors[f"right.{name}"]
    return ((left.T @ left) @ matrix(gradient) @ (right.T @ right)).reshape(gradient.shape)


def matrix(tensor: Tensor) -> Tensor:
    """Return a tensor as matrices.

    A weight `[out, in]` is one, a vector `[n]` is a column `[n, 1]`. A kernel `[out, in, *kernel]` is one matrix
    `[in, positions]` for each output, and all outputs share the factors.
    """
    if tensor.dim() < 2:
        return tensor.reshape(-1, 1)
    return tensor if tensor.dim() == 2 else tensor.flatten(2)
