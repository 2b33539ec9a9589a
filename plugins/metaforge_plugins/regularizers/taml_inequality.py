"""TAML by inequality: an initialisation whose losses on the tasks of an outer step are equal.

Jamal, Qi, "Task-Agnostic Meta-Learning for Few-Shot Learning", CVPR 2019 (arXiv 1805.07722). The measures are those of
economists for the inequality of incomes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import Options, Params, Regularizer
from metaforge.errors import ConfigError

# Added to every loss: the logarithm of a loss of 0 is infinite.
SMALLEST = 1e-8


class TAMLInequalityOptions(Options):
    """Options of TAML by inequality."""

    measure: Literal["theil", "generalised-entropy", "atkinson", "gini", "variance-of-logs"] = Field(
        "theil", description="measure of the inequality of the losses before adaptation"
    )
    weight: float = Field(0.1, ge=0, le=100, description="weight λ of the inequality in the outer loss")
    alpha: float = Field(
        2.0, ge=-2, le=4, description="α of generalised-entropy: the larger, the more large losses count; 1 is theil"
    )
    epsilon: float = Field(
        0.5,
        gt=0,
        le=2,
        description="ε of atkinson, the aversion to inequality: the larger, the more small losses count",
    )


class TAMLInequality(Regularizer):
    """Penalises the inequality of the tasks' losses before the inner loop, by one of five measures.

    Departures from the paper:
    - Weight. The paper adds λ times the inequality to the sum of the tasks' losses, here it is added to their mean. So
      a λ of the paper corresponds to λ divided by the number of tasks here. The paper's λ was not available; suggested
      is 0.1. `regularizers.taml-inequality.weight` sets it.
    - Examples. The losses before the inner loop are those of the query set. No option changes that.
    - Losses of zero. 1e-8 is added to every loss, because most of the measures take logarithms. No option changes that.
    """

    Config = TAMLInequalityOptions
    reference: ClassVar[str] = "Jamal, Qi 2019, arXiv 1805.07722, inequality-minimisation"
    terms = frozenset({"loss_before"})

    def __init__(self, config: TAMLInequalityOptions) -> None:
        self.config = config

    def combine(self, losses: Tensor, terms: Params) -> Tensor | None:
        """Return λ I(ℓ), where ℓ are the losses of the tasks before the inner loop; a scalar, or None if λ = 0.

        Raises:
            ConfigError: There is one task alone, whose loss equals itself.
        """
        if len(losses) < 2:
            raise ConfigError(
                "The regularizer 'taml-inequality' compares the losses of the tasks of an outer step, which has only"
                " one task.",
                where="train.tasks",
                remedy="set train.tasks to 2 or more, or leave the regularizer out",
            )
        return self.config.weight * self.inequality(terms["loss_before"]) if self.config.weight else None

    def inequality(self, losses: Tensor) -> Tensor:
        """Return the inequality of losses `[tasks]`, a scalar: 0 if all are equal, and the same for all multiples."""
        shares = (losses + SMALLEST) / (losses + SMALLEST).mean()
        match self.config.measure:
            case "theil":
                return generalised_entropy(shares, 1.0)
            case "generalised-entropy":
                return generalised_entropy(shares, self.config.alpha)
            case "atkinson":
                return atkinson(shares, self.config.epsilon)
            case "gini":
                return 0.5 * (shares.unsqueeze(0) - shares.unsqueeze(1)).abs().mean()
            case "variance-of-logs":
                return shares.log().var(correction=0)


# In both functions a power r^p - 1 is expm1(p ln r), which is accurate where p is close to 0, and mean(r) = 1.
def generalised_entropy(shares: Tensor, alpha: float) -> Tensor:
    """Return GE(α) = mean(r^α − 1) / (α (α − 1)) of shares r `[tasks]`, whose mean is 1; a scalar.

    For α = 1 it is the limit mean(r ln r), the Theil index, and for α = 0 the limit −mean(ln r).
    """
    logs = shares.log()
    if alpha == 1.0:
        return (shares * logs).mean()
    if alpha == 0.0:
        return -logs.mean()
    if alpha > 0.5:
        return (shares * torch.expm1((alpha - 1.0) * logs)).mean() / (alpha * (alpha - 1.0))
    return torch.expm1(alpha * logs).mean() / (alpha * (alpha - 1.0))


def atkinson(shares: Tensor, epsilon: float) -> Tensor:
    """Return A(ε) = 1 − mean(r^(1−ε))^(1/(1−ε)) of shares r `[tasks]`, whose mean is 1; a scalar.

    For ε = 1 it is the limit 1 − exp(mean(ln r)).
    """
    logs, power = shares.log(), 1.0 - epsilon
    log_equivalent = torch.log1p(torch.expm1(power * logs).mean()) / power if power else logs.mean()
    return -torch.expm1(log_equivalent)
