"""Conditional neural process: one forward pass computes a predictive distribution from the support set.

Garnelo et al., "Conditional Neural Processes", ICML 2018 (arXiv 1807.01613).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    Learner,
    Options,
    Params,
    Parts,
    Tags,
    Task,
    fold_in,
    permutation,
    prefixed,
    score,
    select,
    uniform,
)

Units = Annotated[int, Field(ge=1, le=65536)]


class CNPOptions(Options):
    """Options of conditional neural processes."""

    encoder: tuple[Units, ...] = Field((128, 128, 128, 128), min_length=1, description="units of each encoder layer")
    decoder: tuple[Units, ...] = Field((128, 128), description="units of each hidden layer of the decoder")
    vary_context: bool = Field(
        True, description="in training, use a random number of the support examples, from one to all"
    )


class CNP(Learner):
    """Encodes every support example, averages the codes, and decodes a normal distribution for each query.

    Departures from the paper:
    - Kinds of tasks. The paper also classifies, with one mean code per class; here there is regression only.
    - Size of the context. In the authors' code all tasks of a batch have the same random number of context points; here
      each task has its own, from 1 to the number of its support examples. No option gives theirs;
      `learner.vary_context=false` uses all of them.
    - Data. The authors draw functions from a Gaussian process, with up to 10 context points; no built-in data set does.
    - Training. The authors take 200,000 steps of Adam with learning rate 1e-4 (reported); suggested are 10,000 steps
      with learning rate 1e-3, lowered by a cosine. `train.steps=200000`, `train.lr=0.0001` and `schedule.name=constant`
      give theirs. As in theirs, a step has 64 tasks.
    """

    Config = CNPOptions
    reference: ClassVar[str] = "Garnelo et al. 2018, arXiv 1807.01613, equations 1 to 4"
    tags: Tags = Tags(kinds=frozenset({"regression"}), stochastic=True)
    defaults: ClassVar = {
        "regression": {"train": {"steps": 10000, "tasks": 64, "lr": 1e-3}, "schedule": {"name": "cosine"}}
    }

    def __init__(self, config: CNPOptions, parts: Parts) -> None:
        self.config = config
        inputs, outputs = math.prod(parts.spec.x_shape), parts.spec.outputs
        self.widths = {
            "encoder": (inputs + outputs, *config.encoder),
            "decoder": (inputs + config.encoder[-1], *config.decoder, 2 * outputs),
        }

    def init(self, key: Key) -> Params:
        """Return the weights of encoder and decoder, uniform in ±1/√inputs as in `nn.Linear`."""
        values: Params = {}
        for part, widths in self.widths.items():
            for i, (before, after) in enumerate(pairwise(widths)):
                for name, shape in (("weight", (after, before)), ("bias", (after,))):
                    place = f"{part}.{i}.{name}"
                    values[place] = (2 * uniform(fold_in(key, place), shape) - 1) / math.sqrt(before)
        return prefixed("cnp", values)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the representation r `[units]`: the mean code of the support examples, of some in training."""
        codes = mlp(select(values, "cnp.encoder"), torch.cat([support.x.flatten(1), support.y], -1))
        weights = self.context_weights(len(codes), key, codes)
        return {"representation": weights @ codes / weights.sum().clamp_min(1)}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the means `[n, outputs]`."""
        return self.distribution(values, fast, x)[0]

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean of −log N(y; μ, σ) over the targets of support and query set."""
        x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
        mean, deviation = self.distribution(values, self.adapt(values, task.support, key=key), x)
        metrics = {"score": score("regression", mean[len(task.support.x) :], task.query.y).detach()}
        return -log_normal(y, mean, deviation).mean(), Aux(metrics)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the mean log-likelihood of a query target; a density, it can be positive, up to 1.3836 per output."""
        mean, deviation = self.distribution(values, self.adapt(values, task.support), task.query.x)
        return {"log_likelihood": log_normal(task.query.y, mean, deviation).sum(-1).mean()}

    def distribution(self, values: Params, fast: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the decoder's μ and σ at `x`, each `[n, outputs]`; σ = 0.1 + 0.9 softplus(s)."""
        r = fast["representation"].expand(len(x), -1)
        mean, s = mlp(select(values, "cnp.decoder"), torch.cat([x.flatten(1), r], -1)).chunk(2, -1)
        return mean, 0.1 + 0.9 * F.softplus(s)

    def context_weights(self, n: int, key: Key | None, like: Tensor) -> Tensor:
        """Return a weight of 0 or 1 for each of `n` support examples, at least one of them 1; all 1 in evaluation."""
        if key is None or not self.config.vary_context or n == 0:
            return like.new_ones(n)
        count = 1 + (uniform(fold_in(key, "count"), ()) * n).floor()
        return (permutation(fold_in(key, "context"), n) < count).to(like.dtype)


def mlp(layers: Params, x: Tensor) -> Tensor:
    """Return the output `[n, units]` of linear layers with ReLU between them."""
    depth = len(layers) // 2
    for i in range(depth):
        x = F.linear(x, layers[f"{i}.weight"], layers[f"{i}.bias"])
        x = x.relu() if i + 1 < depth else x
    return x


def log_normal(y: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return log N(y; μ, σ) elementwise `[n, outputs]`."""
    return -0.5 * ((y - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)
