"""Learned loss: a small network that is trained to be the loss which the inner loop minimises.

Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier, "Meta Learning via Learned Loss", ICPR 2020
(arXiv 1906.05374). Details follow the authors' code, facebookresearch/LearningToLearn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    Examples,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Params,
    Parts,
    Pass,
    Task,
    fold_in,
    one_hot,
    sum_of,
    uniform,
)

# Prediction and target of one output.
INPUTS = 2


class LearnedLossOptions(InnerLoopOptions):
    """Options of the learner with a learned loss."""

    widths: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (50, 50), min_length=1, max_length=10, description="units of the hidden layers of the loss network"
    )
    adjoint: Literal["unroll", "recompute", "implicit"] = Field(
        "unroll", description="how the inner loop is differentiated; in first order no loss could be learned"
    )
    task_loss: float = Field(
        1.0, ge=0, le=1e3, description="weight of the task loss in the support loss, beside the learned loss"
    )
    learn: Literal["all", "loss"] = Field(
        "all", description="what is trained: initialisation and loss, or the loss alone, from a random initialisation"
    )


class LearnedLoss(InnerLoopLearner):
    """Meta-learns the loss of the inner loop (ML³), a network of prediction and target, and an initialisation.

    Departures from the paper:
    - Initialisation. The authors learn the loss alone, and draw the network anew in each outer step on sinusoids; here
      the initialisation is learned as in MAML. `learner.learn=loss` learns the loss alone, from one random network, as
      the authors do on digits. No option draws it anew.
    - Outer loss. The authors' code takes the task loss of the examples that the network was adapted to; here it is that
      of the queries, as in MAML. No option changes that.
    - Task loss. In the paper the learned loss replaces the task loss in the inner loop; here it is added to it, which
      learns faster. `learner.task_loss=0` gives the paper's.
    - Several outputs. The paper's network reads all outputs and targets of an example at once. Here it reads one output
      and its target at a time, so that no class is special; their mean is the loss. With one output there is no
      difference. Of a classification it reads log-probabilities. No option changes that.
    - Initial values. As in the authors' code, layers have no bias and are drawn after Glorot and Bengio, but the last
      layer is zero, so that the training starts as MAML. With `learner.task_loss=0` it is drawn, too.
    - Training on sinusoids. The authors take 500 outer steps on one sinusoid, and 100 inner steps of rate 1e-3 in
      evaluation; suggested are 10,000 outer steps as for MAML, and 1 inner step of rate 0.01. `train.steps`,
      `learner.test_steps` and `adapters.sgd.lr` give theirs.
    """

    Config = LearnedLossOptions
    reference: ClassVar[str] = "Bechtle et al. 2020, arXiv 1906.05374, algorithm 1"
    config: LearnedLossOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 1, "test_steps": 1},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"steps": 1, "test_steps": 1},
            "adapters": {"sgd": {"lr": 0.4}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 1, "test_steps": 1},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def __init__(self, config: LearnedLossOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.sizes = (INPUTS, *config.widths, 1)
        if config.learn == "loss":
            self.tags = replace(self.tags, exact_meta_gradient=False)

    def init(self, key: Key) -> Params:
        """Return the values of the network and of the adapter, and the layers `loss.<number>` of the loss network."""
        layers: Params = {}
        for number, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            # With the task loss the training starts as MAML; without it, nothing would be adapted at the start.
            last = number == len(self.sizes) - 2 and self.config.task_loss > 0
            bound = 0.0 if last else (6 / (inputs + outputs)) ** 0.5
            layers[f"loss.{number}"] = bound * (2 * uniform(fold_in(key, f"loss.{number}"), (outputs, inputs)) - 1)
        return super().init(key) | layers

    def learned_loss(self, values: Params, prediction: Tensor, y: Tensor) -> Tensor:
        """Return M_φ, the mean over examples and outputs of softplus(network(prediction, target))."""
        if self.spec.kind.classes:
            prediction = F.log_softmax(prediction, -1)
            y = one_hot(y, self.spec.outputs, prediction.dtype)
        hidden = torch.stack([prediction, y.reshape(prediction.shape)], -1)
        last = len(self.sizes) - 2
        for number in range(last):
            hidden = F.relu(F.linear(hidden, values[f"loss.{number}"]))
        return F.softplus(F.linear(hidden, values[f"loss.{last}"])).mean()

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the learned loss plus the weighted task loss on `batch`, and the state changes of the last draw."""
        losses, state = [], Params()
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw))
            known = self.config.task_loss * self.criterion(prediction, batch.y)
            losses.append(known + self.learned_loss(values, prediction, batch.y))
        return sum_of(losses) / len(losses), state

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the task loss of the queries at θ' = θ − α ∇_θ M_φ, of which φ and θ are learned."""
        if self.config.learn == "loss":
            values = values | {name: value.detach() for name, value in values.items() if not name.startswith("loss.")}
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)
