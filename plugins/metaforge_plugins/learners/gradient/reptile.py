"""Reptile: move the initialisation towards the weights that each task reaches after a few optimiser steps.

Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018 (arXiv 1803.02999).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import vmap

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
    descend,
    fold_in,
    permutation,
    score,
    sum_of,
)

# The name under which `adapt` passes the inputs of the support set to `predict`.
SUPPORT = "support.x"


class ReptileOptions(InnerLoopOptions):
    """Options of Reptile."""

    steps: int = Field(5, ge=1, le=1000, description="inner steps in training (k in the paper)")
    test_steps: int = Field(50, ge=0, le=1000, description="inner steps in evaluation")
    adapt: Literal["weights", "all"] = Field(
        "all", description="parameters that are adapted and meta-learned: all, or all but those of norm layers"
    )
    adjoint: Literal["first-order"] = Field("first-order", description="how the inner loop is differentiated")
    batch: int = Field(10, ge=1, description="examples in the mini-batch of an inner step of training")
    transduction: bool = Field(
        True,
        description="whether batch norm takes its statistics from all queries of an evaluation together (with norm ="
        " transductive); otherwise, from the support set and one query at a time",
    )

    @model_validator(mode="after")
    def one_policy(self) -> Self:
        """Raise `ValueError` if queries are to be predicted one at a time under another norm policy."""
        if not self.transduction and self.norm != "transductive":
            raise ValueError(f"norm is {self.norm}, whose statistics are not of queries; use transduction = true")
        return self


class Reptile(InnerLoopLearner):
    """Learns an initialisation close to the solution of each task, without second derivatives or a query set.

    Departures from the paper:
    - Inner rate. For Omniglot the paper uses Adam with rate 1e-3 for 5 ways and 5e-4 for 20 ways; suggested is 3e-3.
      `adapters.adam.lr=0.001` gives the paper's.
    - Evaluation. The authors' code adapts on mini-batches of the support set: of 5 examples for 5 ways, of 10 for 20
      ways, of 15 for 5 ways and 5 shots on miniImageNet. Here every inner step of an evaluation is on the whole support
      set. For 5 ways and 1 shot that is the same. No option gives mini-batches; `learner.batch` is for training only.
    - Mini-batches in training. Where the examples of a task are no multiple of `learner.batch`, the authors' code puts
      those left over at the end of an epoch into the first mini-batch of the next; here they are left out of that
      epoch.
    - Second moment of Adam. In the authors' code it passes from one task to the next, also within an outer step. Here
      all tasks of an outer step begin with the same one, and its changes are averaged. With one task per step
      (`train.tasks=1`) there is no difference.
    - Batch norm. The paper reports results with the statistics of all queries together (transduction, the default
      here), and of the support set plus one query. `learner.transduction=false` gives the second.
    - Network. See the departures of the backbone `conv4`.
    - Initial values of the head. The authors use those of a dense layer of TensorFlow: weights uniform after Glorot and
      Bengio, and zero biases. Here they are those of `nn.Linear`, uniform in ±1/√inputs. No option changes that.
    - Training on Omniglot. The authors take 100,000 outer steps for 5 ways, and for 20 ways 200,000 with 10 inner steps
      on 20 examples; suggested are 2,000, with 5 inner steps on 10 examples. `train.steps`, `learner.steps` and
      `learner.batch` give theirs. As in theirs, a task has 10 examples per class and the outer rate falls from 1 to 0.
    - Images of Omniglot. The authors split the characters at random into 1200 and 423, and do not invert the images. By
      default the data set `omniglot` splits by alphabet, and inverts. `dataset.invert=false` gives their images;
      `dataset.split=random` has 1100, 100 and 423 characters. As in theirs, rotated copies are classes in training
      only.
    - Sinusoids. The authors' demonstration reportedly has two layers of 64 tanh units, 32 inner steps and an outer rate
      of 0.1. Here training takes 5 inner steps with an outer rate of 0.5, with the network of MAML.
      `backbone.widths=[64, 64]`, `backbone.activation=tanh`, `learner.steps=32` and `train.lr=0.1` give the reported
      ones.
    """

    Config = ReptileOptions
    reference: ClassVar[str] = "Nichol, Achiam, Schulman 2018, arXiv 1803.02999, algorithm 1"
    tags: Tags = replace(InnerLoopLearner.tags, stochastic=True, exact_meta_gradient=False, terms=frozenset())
    config: ReptileOptions
    defaults: ClassVar = {
        "classification": {
            "adapters": {"adam": {"lr": 3e-3, "beta1": 0.0}},
            "train": {"shots": 5, "queries": 5, "tasks": 5, "lr": 1.0, "steps": 2000},
            "backbone": {"variant": "stride-flat"},
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "linear"},
        },
        "multi-label": {
            "adapters": {"adam": {"lr": 3e-3, "beta1": 0.0}},
            "train": {"tasks": 5, "lr": 1.0},
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "linear"},
        },
        "regression": {
            "learner": {"steps": 5, "test_steps": 32},
            "adapters": {"sgd": {"lr": 0.02}},
            "train": {"tasks": 5, "lr": 0.5, "steps": 10000},
            "optimizer": {"name": "sgd"},
            "schedule": {"name": "linear"},
        },
    }

    def __init__(self, config: ReptileOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.alone = not config.transduction and self.norm == "transductive"
        if self.alone:
            self.norm, self.transductive = "support and one query", False

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

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted parameters, and without transduction also the inputs of the support set."""
        fast = super().adapt(values, support, steps=steps, key=key)
        return fast | {SUPPORT: support.x} if self.alone else fast

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the output `[n, outputs]` for `x` `[n, *x_shape]`; each alone beside the support set if so chosen."""
        if not self.alone:
            return super().predict(values, fast, x, key=key)

        def one(query: Tensor) -> Tensor:
            beside = torch.cat([fast[SUPPORT], query.unsqueeze(0)])
            return super(Reptile, self).predict(values, fast, beside, key=key)[-1]

        return vmap(one)(x)

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
