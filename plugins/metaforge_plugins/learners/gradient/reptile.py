"""Reptile: move the initialisation towards the weights that a few optimiser steps on each task reach.

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

    steps: int = Field(5, ge=1, le=1000, description="inner steps in training (k)")
    test_steps: int = Field(50, ge=0, le=1000, description="inner steps in evaluation")
    adapt: Literal["weights", "all"] = Field(
        "all", description="what is meta-learned and moves: all, or all but the norm layers' own parameters"
    )
    batch: int = Field(10, ge=1, description="examples in one inner step of training")


class Reptile(InnerLoopLearner):
    """Learns an initialisation close to each task's solution; no split into support and query, no second derivative."""

    Config = ReptileOptions
    reference: ClassVar[str] = "Nichol, Achiam, Schulman 2018, arXiv 1803.02999, algorithm 1"
    tags: ClassVar[Tags] = replace(InnerLoopLearner.tags, stochastic=True, exact_meta_gradient=False)
    first_order: ClassVar[bool] = True
    config: ReptileOptions
    defaults: ClassVar = {
        "classification": {
            "adapters": {"adam": {"lr": 3e-3, "beta1": 0.0}},
            "train": {
                "shots": 5,
                "queries": 5,
                "tasks": 5,
                "optimizer": "sgd",
                "lr": 1.0,
                "schedule": "linear",
                "steps": 2000,
            },
        },
        "regression": {
            "learner": {"steps": 5, "test_steps": 32},
            "adapters": {"sgd": {"lr": 0.02}},
            "train": {"tasks": 5, "optimizer": "sgd", "lr": 0.5, "schedule": "linear", "steps": 10000},
        },
    }

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return ½‖θ − φ‖² with φ = U_k(θ) a constant: its gradient is Reptile's direction θ − φ."""
        data = Examples(*(torch.cat(pair) for pair in zip(task.support, task.query, strict=True)))
        batches = self.minibatches(data, key)

        def objective(moved: Params, step: int) -> tuple[Tensor, Params]:
            return self.support_loss(moved, batches(step), step, key)

        start = {name: values[name] for name in self.adapted}
        fast, state = descend(objective, values, start, self.adapter, self.config.steps, first_order=True)
        distance = sum_of((start[name] - fast[name].detach()).square().sum() for name in self.adapted)
        with torch.no_grad():
            shown = batches(self.config.steps)
            statistics = self.model.statistics(values | fast, shown.x, Pass(key, self.config.steps, "support"))
            prediction = self.model(values | fast | statistics, shown.x, Pass(key, self.config.steps, "query"))
        figures = {"score": score(self.spec.kind, prediction, shown.y), "fit": self.criterion(prediction, shown.y)}
        return 0.5 * distance, Aux({n: v.detach() for n, v in figures.items()}, state)

    def minibatches(self, data: Examples, key: Key) -> Minibatches:
        """Return the inner steps' mini-batches: the task's examples in a random order, again and again."""
        return Minibatches(data, min(self.config.batch, data.x.shape[0]), key)


class Minibatches:
    """Mini-batch of each inner step, drawn without replacement within an epoch."""

    def __init__(self, data: Examples, size: int, key: Key) -> None:
        self.data, self.size, self.key = data, size, key
        self.per_epoch = max(data.x.shape[0] // size, 1)

    def __call__(self, step: int) -> Examples:
        """Return the examples of an inner step."""
        epoch, place = divmod(step, self.per_epoch)
        order = permutation(fold_in(fold_in(self.key, "epoch"), epoch), self.data.x.shape[0])
        chosen = order[place * self.size : (place + 1) * self.size]
        return Examples(self.data.x[chosen], self.data.y[chosen])
