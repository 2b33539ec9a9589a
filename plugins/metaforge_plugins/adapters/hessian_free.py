"""Hessian-free: Newton steps, whose directions are found by conjugate gradients and whose lengths by a line search.

Martens, "Deep learning via Hessian-free optimization", ICML 2010; as inner optimiser in Rajeswaran, Finn, Kakade,
Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019 (arXiv 1909.04630).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vjp

from metaforge.authoring import (
    Adapter,
    AdapterTags,
    InnerStep,
    Options,
    Params,
    conjugate_gradients,
    detach_params,
    gradient,
)


class HessianFreeOptions(Options):
    """Options of Newton steps by conjugate gradients."""

    solver_steps: int = Field(
        5, ge=1, le=1000, description="steps of conjugate gradients per direction; each is a Hessian-vector product"
    )
    sizes: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(
        (1.0, 0.5, 0.25, 0.125, 0.0625),
        min_length=1,
        max_length=100,
        description="factors of the direction that the line search tries; it takes the one with the lowest support"
        " loss, or 0 if none lowers it",
    )
    damping: float = Field(0.0, ge=0, description="added to the diagonal of the Hessian")


class HessianFree(Adapter):
    """Newton steps with Hessian-vector products in place of the Hessian; constants for the meta-gradient.

    The support loss includes the proximal term of the learner, if there is one. Both the Hessian and the line search
    are those of the whole support set.

    Departures from the paper:
    - Damping. Martens adapts it from step to step, and his matrix is that of Gauss and Newton. Here the matrix is the
      Hessian with a fixed `adapters.hessian-free.damping`, which with iMAML is 0: the factor λ of its proximal term has
      this role. No option gives his.
    - Line search. It is usual to shorten the step until the loss is low enough. Here a fixed list of sizes is tried and
      the best is taken, so that the computation is the same for all tasks. No option changes that.
    """

    Config = HessianFreeOptions
    reference: ClassVar[str] = "Martens 2010, algorithm 1; Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630"
    tags: AdapterTags = AdapterTags(detaches=True)
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        kind: {"learner": {"steps": 2, "test_steps": 2}} for kind in ("classification", "multi-label", "regression")
    }

    def __init__(self, config: HessianFreeOptions) -> None:
        self.config = config

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates s p, where (H + δI) p = g and s is the size with the lowest loss; and the state."""
        assert step.objective is not None, "this inner step has no objective, which hessian-free needs"
        objective, names, at = step.objective, list(params), detach_params(params)

        def slope(*parts: Tensor) -> tuple[Tensor, ...]:
            now = dict(zip(names, parts, strict=True))
            slopes, _ = gradient(lambda p: (objective(p), {}), now, differentiable=True)
            return tuple(slopes[name] for name in names)

        def product(vector: Sequence[Tensor]) -> list[Tensor]:
            return [a + self.config.damping * b for a, b in zip(hessian_product(tuple(vector)), vector, strict=True)]

        with torch.no_grad():
            hessian_product = vjp(slope, *at.values())[1]
            solve = conjugate_gradients(self.config.solver_steps)
            direction = dict(zip(names, solve(product, [grads[name].detach() for name in names]), strict=True))
            lowest = objective(at)
            size = torch.zeros_like(lowest)
            for factor in self.config.sizes:
                loss = objective({name: value - factor * direction[name] for name, value in at.items()})
                # Selected by `where`, so that one computation serves all tasks. NaN is not lower.
                lowest, size = torch.where(loss < lowest, loss, lowest), torch.where(loss < lowest, factor, size)
        return {name: size * direction[name] for name in grads}, state
