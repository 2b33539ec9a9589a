"""Meta-LSTM: learn an initialisation together with the update rule, an LSTM, that adapts it to a task.

Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017 (openreview.net rJY0-Kcll).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, NormPolicy, Params, Tags, Task


class MetaLSTMOptions(InnerLoopOptions):
    """Options of the LSTM meta-learner."""

    steps: int = Field(5, ge=0, le=1000, description="inner steps in training (T in the paper)")
    test_steps: int = Field(5, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("support", description="which statistics batch norm uses for queries")
    adapt: Literal["weights", "all", "head", "body"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all",
        description="parameters that the inner loop adapts: all, all but those of norm layers (weights), those of the"
        " linear head, those of the body but not of its norm layers, or the names that match a list of patterns",
    )
    adjoint: Literal["first-order"] = Field("first-order", description="how the inner loop is differentiated")


class MetaLSTM(InnerLoopLearner):
    """Learns an initialisation and, in the adapter `lstm-optimizer`, the update rule that adapts it (first order).

    Departures from the paper:
    - Gradients. The authors' code divides the gradients of the inner loop by the number of examples once more; here
      they are those of the mean loss. No option changes that.
    - Input gate. For classes, the suggested bias starts the inner rate at about 0.3 instead of 0.01, which suits fewer
      inner steps and a shorter training. `adapters.lstm-optimizer.input_bias=[-5, -4]` gives the paper's.
    - Inner steps. The paper takes 12 for 1 shot, and for 5 shots 8, all on the whole support set; suggested are 5.
      `learner.steps=12` and `learner.test_steps=12` give the paper's for 1 shot.
    - Batch norm. In the authors' code the running averages start anew in each task, are updated in its inner steps, and
      normalise the queries. Here the statistics of the support set with the adapted weights do. No option gives running
      averages of a task. As in theirs, no query sees another one.
    - Network. The paper has results for miniImageNet alone, with 32 filters per convolution and max pooling. Suggested
      are 16 filters, with strides and no pooling, because the LSTM keeps 42 numbers for every weight and inner step.
      `backbone.variant=pool-32` and `backbone.filters=32` give the paper's.
    - Training. The authors take 75,000 outer steps for 1 shot and 50,000 for 5 shots, on one task with 15 queries per
      class, by Adam with learning rate 1e-3. Suggested are 6,000 steps with rate 3e-3, lowered by a cosine, on 4 tasks
      with 5 queries. `train.steps`, `train.lr`, `train.tasks`, `train.queries` and `schedule.name=constant` give
      theirs. The limit 0.25 on the norm of the meta-gradient is theirs.
    """

    Config = MetaLSTMOptions
    reference: ClassVar[str] = "Ravi, Larochelle 2017, openreview.net rJY0-Kcll, algorithm 1"
    tags: Tags = replace(InnerLoopLearner.tags, exact_meta_gradient=False)
    defaults: ClassVar = {
        "classification": {
            "adapters": {"lstm-optimizer": {"input_bias": [-1.5, -0.5]}},
            "train": {"queries": 5, "tasks": 4, "steps": 6000, "lr": 3e-3, "clip": 0.25},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "stride-flat", "filters": 16},
        },
        "multi-label": {
            "adapters": {"lstm-optimizer": {"input_bias": [-1.5, -0.5]}},
            "train": {"steps": 5000, "tasks": 16, "clip": 0.25},
        },
        "regression": {
            "adapters": ["lstm-optimizer"],
            "train": {"steps": 10000, "tasks": 25, "clip": 0.25},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss at θ_T, which the LSTM reaches by θ_t = f_t ∘ θ_{t−1} − i_t ∘ ∇_t from θ_0."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
