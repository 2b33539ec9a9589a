"""Attentive neural process: a neural process in which each target attends to the support examples that matter for it.

Kim et al., "Attentive Neural Processes", ICLR 2019 (arXiv 1901.05761).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metaforge.authoring import Examples, LatentProcessLearner, LatentProcessOptions, Params, Parts

# The projections of multi-head attention.
PROJECTIONS = ("queries", "keys", "values", "output")


class ANPOptions(LatentProcessOptions):
    """Options of attentive neural processes."""

    heads: int = Field(8, ge=1, le=256, description="heads of each attention, which share the units of the encoder")
    self_attention: int = Field(
        0, ge=0, le=16, description="layers of self-attention among the codes of a context, in both encoders"
    )

    @model_validator(mode="after")
    def even_heads(self) -> Self:
        """Raise `ValueError` unless the units of the last encoder layer can be divided among the heads."""
        if self.encoder[-1] % self.heads:
            raise ValueError(
                f"the {self.encoder[-1]} units of the last encoder layer cannot be divided among {self.heads} heads"
            )
        return self


class ANP(LatentProcessLearner):
    """Decodes normal distributions from a latent variable z and codes of the context that each target attends to.

    Departures from the paper:
    - Size of the context. In the authors' code all tasks of a batch have the same random numbers of context points and
      of targets; here each task has its own number of context points, from 1 to that of its support examples, and all
      examples are targets. No option gives theirs; `learner.vary_context=false` uses the whole support set.
    - Projections. In the authors' code the projections of queries, keys and values have no bias; here they have one, as
      in `nn.MultiheadAttention`. No option changes that.
    - Self-attention. As in the paper's curves there is none by default; for images the authors stack two layers, which
      `learner.self_attention=2` gives. Each layer adds its output to its input. No option changes that.
    - Predictions. A prediction is the mean at the mean of q(z | context), and the log-likelihood averages over samples
      of z. No option changes that.
    - Data. The authors draw functions from a Gaussian process with noise of 0.02 and up to 50 context points; the data
      set `gaussian-process` has a noise of 0.1 and 25 points by default. `dataset.noise=0.02`,
      `dataset.scale=[0.1, 1.0]` and `task.shots=50` give theirs.
    - Training. The authors' code takes 100,000 steps of Adam with learning rate 1e-4 and 16 tasks; suggested are 10,000
      steps with learning rate 1e-3, lowered by a cosine. `train.steps=100000`, `train.lr=0.0001` and
      `schedule.name=constant` give theirs.
    """

    Config = ANPOptions
    reference: ClassVar[str] = "Kim et al. 2019, arXiv 1901.05761, section 3 and appendix A"
    prefix: ClassVar[str] = "anp"
    config: ANPOptions
    defaults: ClassVar = {
        "regression": {"train": {"steps": 10000, "tasks": 16, "lr": 1e-3}, "schedule": {"name": "cosine"}}
    }

    def __init__(self, config: ANPOptions, parts: Parts) -> None:
        units = config.encoder[-1]
        super().__init__(config, parts, units=units)
        self.widths |= {
            "encoder": (self.inputs + self.outputs, *config.encoder),
            # Queries and keys are codes of the inputs alone, by one network.
            "locations": (self.inputs, units, units),
        }
        layers = [
            f"{part}_attention_{i}" for part in ("encoder", "latent_encoder") for i in range(config.self_attention)
        ]
        self.widths |= {f"{name}.{part}": (units, units) for name in ("attention", *layers) for part in PROJECTIONS}

    def context(self, values: Params, support: Examples, weights: Tensor) -> Params:
        """Return the codes r_i of the examples and those of their inputs, each `[n, units]`, and the weights."""
        return {
            "codes": self.encode(values, "encoder", support, weights),
            "locations": self.network(values, "locations", support.x.flatten(1)),
            "weights": weights,
        }

    def codes(self, values: Params, fast: Params, x: Tensor) -> Tensor:
        """Return x and r(x) `[n, inputs + units]`, the codes of the context to which x attends."""
        x = x.flatten(1)
        located = self.network(values, "locations", x)
        r = self.attend(values, "attention", located, fast["locations"], fast["codes"], fast["weights"])
        return torch.cat([x, r], -1)

    def encode(self, values: Params, part: str, examples: Examples, weights: Tensor) -> Tensor:
        """Return the code of each example `[n, units]`, which by self-attention depends on the others of weight 1."""
        codes = super().encode(values, part, examples, weights)
        for i in range(self.config.self_attention):
            codes = codes + self.attend(values, f"{part}_attention_{i}", codes, codes, codes, weights)
        return codes

    def attend(self, values: Params, name: str, q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> Tensor:
        """Return softmax(q kᵀ / √size) v of each head `[m, units]`, for `q` `[m, units]`, `k` and `v` `[n, units]`.

        Examples of weight 0 get no attention.
        """
        size = self.config.encoder[-1] // self.config.heads
        q, k, v = (
            self.network(values, f"{name}.{part}", x).reshape(len(x), self.config.heads, size).transpose(0, 1)
            for part, x in zip(PROJECTIONS[:3], (q, k, v), strict=True)
        )
        logits = (q @ k.mT / size**0.5).masked_fill(weights == 0, -torch.inf)
        heads = logits.softmax(-1) @ v
        return self.network(values, f"{name}.output", heads.transpose(0, 1).flatten(1))
