"""TAML by entropy: an initialisation that is uncertain about every task, and certain once it is adapted.

Jamal, Qi, "Task-Agnostic Meta-Learning for Few-Shot Learning", CVPR 2019 (arXiv 1805.07722).
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Options, Params, Regularizer


class TAMLEntropyOptions(Options):
    """Options of TAML by entropy."""

    weight: float = Field(0.1, ge=0, le=100, description="weight λ of the entropies in the outer loss")


class TAMLEntropy(Regularizer):
    """Rewards predictions that are uncertain before the inner loop and certain after it.

    Departures from the paper:
    - Weight. The paper's λ was not available; suggested is 0.1. `regularizers.taml-entropy.weight` sets it. The paper
      adds up the losses and the entropies of the tasks. Here both are means over the tasks, so that λ means the same.
    - Examples. Both entropies are those of the predictions for the query set. No option changes that.
    """

    Config = TAMLEntropyOptions
    reference: ClassVar[str] = "Jamal, Qi 2019, arXiv 1805.07722, entropy-maximisation and -reduction"
    terms = frozenset({"entropy_before", "entropy_after"})

    def __init__(self, config: TAMLEntropyOptions) -> None:
        self.config = config

    def combine(self, losses: Tensor, terms: Params) -> Tensor | None:
        """Return λ times the mean of H(f_θ') − H(f_θ) over the tasks, a scalar; None if λ = 0."""
        if not self.config.weight:
            return None
        return self.config.weight * (terms["entropy_after"] - terms["entropy_before"]).mean()
