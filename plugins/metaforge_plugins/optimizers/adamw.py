"""AdamW: Adam with decoupled weight decay.

Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019 (arXiv 1711.05101).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from metaforge.authoring import MomentOptions, Optimizer, fused


class AdamW(Optimizer):
    """Adam with decoupled weight decay, 0.01 unless `train.weight_decay` is set."""

    Config = MomentOptions
    reference: ClassVar[str] = "Loshchilov, Hutter 2019, arXiv 1711.05101, algorithm 2"
    weight_decay: ClassVar[float] = 0.01

    def __init__(self, config: MomentOptions) -> None:
        self.config = config

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return torch's AdamW."""
        return torch.optim.AdamW(groups, betas=self.config.betas, eps=self.config.eps, fused=fused(groups))
