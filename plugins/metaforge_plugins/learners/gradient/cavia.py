"""CAVIA: adapt a small context vector to each task, and share the network between all tasks.

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019 (arXiv 1810.03642).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Parts, Task


class CAVIAOptions(InnerLoopOptions):
    """Options of CAVIA."""

    context: int = Field(5, ge=1, le=10000, description="number of context parameters φ")
    adapt: Literal["context"] = Field("context", description="what the inner loop adapts: the context parameters alone")


class CAVIA(InnerLoopLearner):
    """Learns a network whose input or activations depend on a context vector, which alone is adapted to a task.

    Departures from the paper:
    - Inner rate. On images the authors' code has 1.0; suggested is 100, because the gradient of the context is small as
      long as the weights that leave it are small. `adapters.sgd.lr=1.0` gives theirs.
    - Network. On images the authors scale the channels by a layer whose bias is the scale at φ = 0; here that scale is
      1. Their network for miniImageNet has pooling and 32 to 512 filters: `backbone.variant=pool` and
      `backbone.filters` give it. See the departures of the backbones `conv4` and `mlp`.
    - Clipping. The authors limit the entries of each task's meta-gradient to ±10; here they have no limit by default.
      `train.clip_value=10` limits those of the mean over the tasks.
    - Training on sinusoids. The authors take 50,000 outer steps, and evaluate on 100 tasks of 100 queries on a grid;
      suggested are 10,000 and the data set's queries. `train.steps=50000`, `train.queries=10`, `evaluate.tasks=100`,
      `task.queries=100` and `dataset.query_grid=true` give theirs.
    - Training on images. The authors take 60,000 outer steps on miniImageNet, on 4 tasks for 1 shot and 2 for 5 shots
      with 15 queries per class, with learning rate 1e-3 that falls by a factor of 0.9 every 5,000 steps. They have no
      results for Omniglot. The suggested settings are shorter: see `train.steps`, `train.tasks`, `train.queries`,
      `train.lr` and `schedule`.
    """

    Config = CAVIAOptions
    reference: ClassVar[str] = "Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, arXiv 1810.03642, algorithm 1"
    defaults: ClassVar = {
        "classification": {
            "learner": {"context": 100, "steps": 2, "test_steps": 2},
            "adapters": {"sgd": {"lr": 100.0}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"context": 100, "steps": 2, "test_steps": 2},
            "adapters": {"sgd": {"lr": 100.0}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 1},
            "adapters": {"sgd": {"lr": 1.0}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def __init__(self, config: CAVIAOptions, parts: Parts) -> None:
        super().__init__(config, parts, context=config.context)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return L_Q(φ_k, θ), where φ_0 = 0 and φ_{i+1} = φ_i − α ∇_φ L_S(φ_i, θ) (equations 4 and 5)."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
