"""MAML: learn an initialisation from which a few gradient steps solve a new task.

Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017 (arXiv 1703.03400).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Task


class MAML(InnerLoopLearner):
    """Learns an initialisation by differentiating through the inner loop (second order)."""

    Config = InnerLoopOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2"
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss at θ' = θ − α ∇L_S(θ), with one such update per inner step (equation 1)."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
