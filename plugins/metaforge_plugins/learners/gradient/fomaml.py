"""FOMAML: first-order MAML, which treats the inner gradients as constants.

Finn, Abbeel, Levine 2017 (arXiv 1703.03400, section 5.2); analysed by Nichol, Achiam, Schulman 2018 (arXiv 1803.02999).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Tags, Task


class FOMAMLOptions(InnerLoopOptions):
    """Options of first-order MAML."""

    adjoint: Literal["first-order"] = Field("first-order", description="how the inner loop is differentiated")


class FOMAML(InnerLoopLearner):
    """Learns an initialisation by the gradient of the query loss at the adapted weights (first order).

    Departures from the paper:
    - Those of `maml`: the inner rate in classification is for a mean over the examples (`adapters.sgd.lr=2.0` gives the
      step of the authors' code on Omniglot), the head has the initial values of `nn.Linear` instead of N(0, 1), batch
      norm has a scale γ (`backbone.affine=shift` gives theirs), the backbones differ, and the suggested training is
      shorter.
    - Inner steps. The paper uses those of MAML, for 5 ways on Omniglot 1 step in training and 3 in evaluation;
      suggested are 3 and 5. `learner.steps=1` and `learner.test_steps=3` give the paper's.
    """

    Config = FOMAMLOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.2"
    tags: Tags = replace(InnerLoopLearner.tags, exact_meta_gradient=False)
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 3, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"steps": 3, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss at θ' = θ − c, where the inner updates c are constants: its gradient is ∇L_Q(θ')."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
