"""BOIL: adapt the body of the network alone; the head is the same in every task.

Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021 (arXiv 2008.08882). Details
follow the authors' code, jhoon-oh/BOIL.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Aux, InnerLoopLearner, InnerLoopOptions, Key, Params, Parts, Task
from metaforge.errors import ConfigError


class BOILOptions(InnerLoopOptions):
    """Options of BOIL."""

    adapt: Literal["body"] | Annotated[list[str], Field(min_length=1)] = Field(
        ["model.0.*"],
        description="parameters of the body that the inner loop adapts: those that match a list of patterns, by default"
        " all, or all but those of its norm layers (body)",
    )


class BOIL(InnerLoopLearner):
    """Learns an initial body from which a few gradient steps solve a new task, and a head that all tasks share.

    As in the authors' code, the inner loop adapts the parameters of norm layers too; `learner.adapt=body` leaves them
    out.

    Departures from the paper:
    - Data. The authors' code has no settings for Omniglot or regression; those that are suggested here are not theirs.
    - Network. The paper has four convolutions of 64 filters with max pooling, for images of 84 and 32 pixels, which
      `backbone.variant=pool` gives, and a ResNet-12 whose last block has no skip connection, which is not among the
      backbones. The authors' convolutions have the initial values of PyTorch; those of `conv4` are Xavier's.
    - Training. The authors take 30,000 outer steps by Adam with learning rate 1e-3, on 4 tasks with 15 queries per
      class, and evaluate after 1 inner step, as in training. `train.steps`, `train.lr`, `train.tasks`,
      `train.queries`, `schedule.name=constant` and `learner.test_steps=1` give theirs.
    """

    Config = BOILOptions
    reference: ClassVar[str] = "Oh, Yoo, Kim, Yun 2021, arXiv 2008.08882, section 3"
    config: BOILOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.5}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.5}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 5},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def __init__(self, config: BOILOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        if of_head := sorted(set(self.adapted) & set(self.model.head)):
            raise ConfigError(
                f"The patterns match {of_head[0]!r}, a parameter of the head, which BOIL does not adapt.",
                where="learner.adapt",
                remedy="give patterns of the body, such as model.0.*, or choose the learner maml",
            )

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss at (b', h), where b' = b − α ∇_b L_S(b, h): the inner rate of the head h is zero."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
