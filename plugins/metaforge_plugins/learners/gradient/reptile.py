"""Reptile: move the initialisation towards the weights that each task reaches after a few optimiser steps.

Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018 (arXiv 1803.02999).
"""

from __future__ import annotations

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
    Pass,
    Tags,
    Task,
    descend,
    fold_in,
    permutation,
    score,
    sum_of,
)


class ReptileOptions(InnerLoopOptions):
    """Options of Reptile."""

    steps: int = Field(5, ge=1, le=1000, description="inner steps in training (k in the paper)")
    test_steps: int = Field(50, ge=0, le=1000, description="inner steps in evaluation")
    adapt: Literal["weights", "all"] = Field(
        "all", description="parameters that are adapted and meta-learned: all, or all but those of norm layers"
    )
    adjoint: Literal["first-order"] = Field("first-order", description="how the inner loop is differentiated")
    batch: int = Field(10, ge=1, description="examples in the mini-batch of an inner step of training")


class Reptile(InnerLoopLearner):
    """Learns an initialisation close to the solution of each task, without second derivatives or a query set."""

    Config = ReptileOptions
    reference: ClassVar[str] = "Nichol, Achiam, Schulman 2018, arXiv 1803.02999, algorithm 1"
    tags: Tags = replace(InnerLoopLearner.tags, stochastic=True, exact_meta_gradient=False, terms=frozenset())
    config: ReptileOptions
    defaults: ClassVar = {
        "classification": {
            "adapters": {"adam": {"lr": 3e-3, "beta1": 0.0}},
            "train": {"shots": 5, "queries": 5, "tasks": 5, "lr": 1.0, "steps": 2000},
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "linear"},
        },
        "multi-label": {"adapters": {"adam": {"lr": 3e-3, "beta1": 0.0}}, "train": {"tasks": 5}},
        "regression": {
            "learner": {"steps": 5, "test_steps": 32},
            "adapters": {"sgd": {"lr": 0.02}},
            "train": {"tasks": 5, "lr": 0.5, "steps": 10000},
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "linear"},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return ½‖θ − φ‖², where φ = U_k(θ) is a constant: its gradient is Reptile's direction θ − φ (algorithm 1)."""
        data = Examples(*(torch.cat(pair) for pair in zip(task.support, task.query, strict=True)))
        batches = Minibatches(data, self.config.batch, key)

        def objective(values: Params, step: int) -> tuple[Tensor, Params]:
            return self.support_loss(values, batches(step), step, key)

        start = self.start(values, task.support, key)
        how, factor = self.adjoint, self.config.proximal
        steps = self.config.steps
        fast, state = descend(objective, values, start, self.adapter, steps, adjoint=how, proximal=factor)
        distance = sum_of((start[name] - fast[name].detach()).square().sum() for name in start)
        metrics = self.metrics(values | fast, batches(self.config.steps), key)
        return 0.5 * distance, Aux(metrics, state)

    def metrics(self, values: Params, batch: Examples, key: Key) -> Params:
        """Return score and loss (`fit`) of the adapted network on the mini-batch that follows the last inner step."""
        with torch.no_grad():
            statistics = self.model.statistics(values, batch.x, Pass(key, self.config.steps, "support"))
            prediction = self.model(values | statistics, batch.x, Pass(key, self.config.steps, "query"))
        metrics = {"score": score(self.spec.kind, prediction, batch.y), "fit": self.criterion(prediction, batch.y)}
        return {name: value.detach() for name, value in metrics.items()}


class Minibatches:
    """The mini-batches of a task's inner steps, drawn without replacement within an epoch.

    Args:
        data: All examples of the task.
        size: Largest number of examples in a mini-batch.
        key: The key from which the order of the examples in each epoch is derived.
    """

    def __init__(self, data: Examples, size: int, key: Key) -> None:
        self.data, self.size, self.key = data, min(size, data.x.shape[0]), key
        self.per_epoch = max(data.x.shape[0] // self.size, 1)

    def __call__(self, step: int) -> Examples:
        """Return the examples of an inner step `[size, ...]`."""
        epoch, place = divmod(step, self.per_epoch)
        order = permutation(fold_in(fold_in(self.key, "epoch"), epoch), self.data.x.shape[0])
        chosen = order[place * self.size : (place + 1) * self.size]
        return Examples(self.data.x[chosen], self.data.y[chosen])
