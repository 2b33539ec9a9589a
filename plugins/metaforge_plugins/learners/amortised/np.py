"""Neural process: predict functions drawn from a latent variable, whose distribution the support set determines.

Garnelo et al., "Neural Processes", 2018 (arXiv 1807.01622).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import Examples, LatentProcessLearner, LatentProcessOptions, Params, Parts, mean_code


class NPOptions(LatentProcessOptions):
    """Options of neural processes."""

    path: Literal["latent", "both"] = Field(
        "both", description="what the decoder reads: latent: z alone; both: z and the mean code of the context"
    )


class NP(LatentProcessLearner):
    """Encodes the support set as a distribution of a latent variable z, and decodes a normal distribution from each z.

    Departures from the paper:
    - Path. In the paper the decoder reads z alone; here it reads the mean code r of the context too, as the neural
      process of Kim et al. 2019 and the authors' code do. `learner.path=latent` gives the paper's.
    - Size of the context. In the authors' code all tasks of a batch have the same random numbers of context points and
      of targets; here each task has its own number of context points, from 1 to that of its support examples, and all
      examples are targets. No option gives theirs; `learner.vary_context=false` uses the whole support set.
    - Predictions. The paper shows functions of single samples of z. Here a prediction is the mean at the mean of
      q(z | context), and the log-likelihood averages over samples of z. No option changes that.
    - Data. The authors draw functions from a Gaussian process with noise of 0.02 and up to 50 context points; the data
      set `gaussian-process` has a noise of 0.1 and 25 points by default. `dataset.noise=0.02`,
      `dataset.scale=[0.1, 1.0]` and `task.shots=50` give theirs.
    - Training. The authors' code takes 100,000 steps of Adam with learning rate 1e-4 and 16 tasks; suggested are 10,000
      steps with learning rate 1e-3, lowered by a cosine. `train.steps=100000`, `train.lr=0.0001` and
      `schedule.name=constant` give theirs.
    """

    Config = NPOptions
    reference: ClassVar[str] = "Garnelo et al. 2018, arXiv 1807.01622, equations 5 to 9"
    prefix: ClassVar[str] = "np"
    config: NPOptions
    defaults: ClassVar = {
        "regression": {"train": {"steps": 10000, "tasks": 16, "lr": 1e-3}, "schedule": {"name": "cosine"}}
    }

    def __init__(self, config: NPOptions, parts: Parts) -> None:
        with_code = config.path == "both"
        super().__init__(config, parts, units=config.encoder[-1] if with_code else 0)
        if with_code:
            self.widths["encoder"] = (self.inputs + self.outputs, *config.encoder)

    def context(self, values: Params, support: Examples, weights: Tensor) -> Params:
        """Return the representation r `[units]`, the mean code of the context, if the decoder reads it."""
        if self.config.path == "latent":
            return {}
        return {"representation": mean_code(self.encode(values, "encoder", support, weights), weights)}

    def codes(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        """Return x, with r if the decoder reads it, `[n, inputs + units]`."""
        if self.config.path == "latent":
            return x.flatten(1)
        return torch.cat([x.flatten(1), fast["representation"].expand(len(x), -1)], -1)
