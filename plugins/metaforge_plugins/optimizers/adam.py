"""Adam, whose weight decay is decoupled from the gradient.

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015 (arXiv 1412.6980); the weight decay after
Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from metaforge.authoring import MomentOptions, Optimizer, fused


class Adam(Optimizer):
    """Adam, by default without weight decay; `train.weight_decay` is decoupled from the gradient."""

    Config = MomentOptions
    reference: ClassVar[str] = "Kingma, Ba 2015, arXiv 1412.6980, algorithm 1"

    def __init__(self, config: MomentOptions) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's AdamW, which without weight decay is Adam."""
        return torch.optim.AdamW(groups, betas=self.config.betas, eps=self.config.eps, fused=fused(groups))
