"""Proto-MAML: MAML whose head is made, for each task, from the class means of the support set.

Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", ICLR 2020
(arXiv 1903.03096).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import (
    Aux,
    Examples,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    at_least_float32,
    make_key,
    one_hot,
)


class ProtoMAMLOptions(InnerLoopOptions):
    """Options of Proto-MAML."""

    adjoint: Literal["unroll", "recompute", "first-order"] = Field(
        "first-order",
        description="how the inner loop is differentiated: through its steps; through its steps, computed again to save"
        " memory; or with its gradients as constants. The prototypes are differentiated in any case",
    )


class ProtoMAML(InnerLoopLearner):
    """Starts the inner loop of MAML from the head with which it classifies as prototypical networks do.

    Departures from the paper:
    - Inner loop. The authors' best model takes 6 steps with inner rate 0.0054, in training and in evaluation. Suggested
      are 1 in training and 3 in evaluation, with inner rate 0.01. `learner.steps=6`, `learner.test_steps=6` and
      `adapters.sgd.lr=0.005435` give theirs. As in that model, the gradients of the inner loop are constants, batch
      norm takes the statistics of all queries, and the inner loop does not adapt its parameters.
    - Tasks. In Meta-Dataset the numbers of classes and examples vary. Suggested are training tasks of 100 ways with one
      query per class. `train.sampler=varied` varies them. An adapter that meta-learns a number for each weight of the
      head, such as `meta-sgd`, needs tasks of equal ways: set `train.ways` to the number of the evaluation.
    - Training. The authors take Adam with learning rate 3.6e-4, which falls by a factor of 0.648 every 2,500 steps, and
      weight decay 1.4e-5. Suggested are 1,500 steps with learning rate 3e-3, lowered by a cosine. `train.steps`,
      `train.lr`, `schedule.name=step`, `schedule.every=2500`, `schedule.gamma=0.648`, and the optimizer `adamw` with
      `train.weight_decay` give about theirs.
    - Network. The authors' images have 126 pixels, and their network is trained on ImageNet beforehand. The suggested
      one is `conv4` with 64 features, from random values; `train.init_from` takes those of another run.
    """

    Config = ProtoMAMLOptions
    reference: ClassVar[str] = "Triantafillou et al. 2020, arXiv 1903.03096, section 3.3"
    tags: Tags = replace(
        InnerLoopLearner.tags, kinds=frozenset({"classification"}), fixed_ways=False, other_kinds=False
    )
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 3},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"ways": 100, "queries": 1, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: ProtoMAMLOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.features = self.model.module.get_parameter(self.model.names[-2]).shape[1]
        # An adapter may meta-learn a number for each entry of the head, such as a rate: then the ways are fixed.
        if self.of_adapter(parts.spec.outputs) != self.of_adapter(parts.spec.outputs + 1):
            self.tags = replace(self.tags, fixed_ways=True)

    def of_adapter(self, ways: int) -> Mapping[str, torch.Size]:
        """Return the shapes of what the adapter meta-learns for the head of a task with `ways` classes."""
        shapes = zip(self.model.head, ((ways, self.features), (ways,)), strict=True)
        head = {name: torch.zeros(shape) for name, shape in shapes if name in self.adapted}
        return {name: value.shape for name, value in self.adapter.init(head, make_key(0)).items()} if head else {}

    def init(self, key: Key) -> Params:
        """Return the values of the body and of the adapter; the head belongs to a task."""
        return {name: value for name, value in super().init(key).items() if name not in self.model.head}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the head and the parameters that the inner loop adapts, after `steps` inner steps."""
        head = self.head(values, support, key)
        return head | super().adapt(values | head, support, steps=steps, key=key)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after an inner loop that begins with the body θ and the head of the prototypes."""
        values = values | self.head(values, task.support, key)
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)

    def head(self, values: Params, support: Examples, key: Key | None) -> Params:
        """Return the weights W = 2c `[ways, features]` and biases b = −‖c‖² `[ways]`; c are the mean features.

        As W·f + b = ‖f‖² − ‖f − c‖², the probabilities are those of prototypical networks (section 3.3).
        """
        weight, bias = self.model.head
        # The features are the outputs of a network whose head is the identity.
        identity = torch.eye(self.features, dtype=support.x.dtype, device=support.x.device)
        network = values | {weight: identity, bias: identity.new_zeros(self.features)}
        features = at_least_float32(self.model(network, support.x, Pass(key, 0, "support")))
        members = one_hot(support.y, self.spec.outputs, features.dtype)
        prototypes = members.T @ features / members.sum(0).unsqueeze(-1)
        return {weight: 2 * prototypes, bias: -prototypes.square().sum(-1)}
