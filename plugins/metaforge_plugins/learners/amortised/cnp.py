"""Conditional neural process: one forward pass computes a predictive distribution from the support set.

Garnelo et al., "Conditional Neural Processes", ICML 2018 (arXiv 1807.01613).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    Params,
    Parts,
    ProcessLearner,
    ProcessOptions,
    Task,
    coverage,
    log_normal,
    mean_code,
    score,
)


class CNP(ProcessLearner):
    """Encodes every support example, averages the codes, and decodes a normal distribution for each query.

    Departures from the paper:
    - Kinds of tasks. The paper also classifies images (section 4.3): a network embeds them, and a decoder for a fixed
      number of classes reads the mean embeddings of all classes, concatenated. Here there is regression only, because a
      learner is built from the same components for all kinds of tasks, and regression needs no network of images. No
      option changes that; `protonet` compares a query with the mean embedding of each class, for any number of classes.
    - Size of the context. In the authors' code all tasks of a batch have the same random number of context points; here
      each task has its own, from 1 to the number of its support examples. No option gives theirs;
      `learner.vary_context=false` uses all of them.
    - Data. The authors draw functions from a Gaussian process, with up to 10 context points. The data set
      `gaussian-process` does, by default with 25 points of random length scales; `dataset.length_scale=[0.4, 0.4]`,
      `dataset.noise=0.02` and `task.shots=10` give theirs. Images are completed too (section 4.2), by the option
      `dataset.task=completion` of data sets of images.
    - Training. The authors take 200,000 steps of Adam with learning rate 1e-4 (reported); suggested are 10,000 steps
      with learning rate 1e-3, lowered by a cosine. `train.steps=200000`, `train.lr=0.0001` and `schedule.name=constant`
      give theirs. As in theirs, a step has 64 tasks.
    """

    Config = ProcessOptions
    reference: ClassVar[str] = "Garnelo et al. 2018, arXiv 1807.01613, equations 1 to 4"
    prefix: ClassVar[str] = "cnp"
    config: ProcessOptions
    defaults: ClassVar = {
        "regression": {"train": {"steps": 10000, "tasks": 64, "lr": 1e-3}, "schedule": {"name": "cosine"}}
    }

    def __init__(self, config: ProcessOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        self.widths = {
            "encoder": (self.inputs + self.outputs, *config.encoder),
            "decoder": (self.inputs + config.encoder[-1], *config.decoder, 2 * self.outputs),
        }

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the representation r `[units]`: the mean code of the support examples, of some in training."""
        weights = self.context_weights(len(support.x), key, support.x)
        return {"representation": mean_code(self.encode(values, "encoder", support, weights), weights)}

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the means `[n, outputs]`."""
        return self.distribution(values, fast, x)[0]

    def deviation(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        """Return the standard deviations `[n, outputs]`."""
        return self.distribution(values, fast, x)[1]

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean of −log N(y; μ, σ) over the targets of support and query set."""
        x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
        mean, deviation = self.distribution(values, self.adapt(values, task.support, key=key), x)
        metrics = {"score": score("regression", mean[len(task.support.x) :], task.query.y).detach()}
        return -log_normal(y, mean, deviation).mean(), Aux(metrics)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the mean log-likelihood of a query target, and the coverage of the central 95 % intervals.

        The likelihood is a density; its logarithm can be positive, up to 1.3836 per output.
        """
        mean, deviation = self.distribution(values, self.adapt(values, task.support), task.query.x)
        return {
            "log_likelihood": log_normal(task.query.y, mean, deviation).sum(-1).mean(),
            "coverage_95": coverage(task.query.y, mean.unsqueeze(0), deviation.unsqueeze(0)),
        }

    def distribution(self, values: Params, fast: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and σ at `x`, each `[n, outputs]`, decoded from x and r."""
        r = fast["representation"].expand(len(x), -1)
        return self.decode(values, torch.cat([x.flatten(1), r], -1))
