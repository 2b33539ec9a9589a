"""Embedding-based Meta Networks: the weights of each class are generated from the embeddings of its support examples.

Both forms are those of an earlier implementation, which took the name from Munkhdalai, Yu, "Meta Networks", ICML 2017
(arXiv 1703.00837). No paper describes them. For the method of that paper see `meta-networks`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import (
    MLP,
    Aux,
    BatchNormPolicy,
    Examples,
    Key,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    at_least_float32,
    cross_entropy,
    one_hot,
    score,
)


class EBMetaNetworksOptions(Options):
    """Options of embedding-based Meta Networks."""

    embedding: int = Field(64, ge=1, le=65536, description="size of the embedding h of an example")
    generator: Literal["linear", "network"] = Field(
        "linear",
        description="how the weights of a class are generated: by a linear map, for which queries are mapped too, or by"
        " two networks, of which the second generates a bias",
    )
    units: int = Field(128, ge=1, le=65536, description="units of what is generated from (rows of U and V)")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class EBMetaNetworks(ModelLearner):
    """Generates the weights of each class from the mean over its support examples, and nothing is optimised for a task.

    The linear form is bilinear in the embeddings: its logits are h_qᵀ VᵀU c_n up to a constant, where c_n is the mean
    embedding of the class. The vector e has no influence on the probabilities.

    Departures from the paper:
    - Method. The paper generates weights from gradients; see `meta-networks`. The departures below are from the earlier
      implementation.
    - Initial values. It draws U, V and e from 0.01 N(0, 1), so that all logits are close to 0; here they are drawn as
      PyTorch draws those of linear layers. No option gives its values.
    - Dropout. It states a gain by Meta Dropout, which its code applies in evaluation only, where it has no effect.
      `--regularizer meta-dropout` gives the noise in training.
    - Training. It takes 500 steps of Adam with learning rate 1e-3 on images of 105 pixels, and limits the norm of the
      gradient to 1. Suggested are 1,500 steps with learning rate 3e-3, lowered by a cosine, on 20 ways with 5 queries
      per class. `--preset omniglot-seed` gives its data, and `train.clip=1` its limit.
    """

    Config = EBMetaNetworksOptions
    reference: ClassVar[str] = "after Munkhdalai, Yu 2017, arXiv 1703.00837"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: EBMetaNetworksOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: EBMetaNetworksOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm, outputs=config.embedding)
        h, r = config.embedding, config.units
        self.u, self.v = MLP("u", (h, r)), MLP("v", (h, r), bias=False)
        self.weights, self.biases = MLP("weights", (r, r, h)), MLP("biases", (r, h, 1))

    def init(self, key: Key) -> Params:
        """Return the values of the embedding network, and of the parts that generate."""
        parts = (self.u, self.v) if self.config.generator == "linear" else (self.u, self.weights, self.biases)
        return super().init(key) | {name: value for part in parts for name, value in part.init(key).items()}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the weights of the classes `[ways, units]`, or `[ways, embedding]` and their biases `[ways]`."""
        at = Pass(key, 0, "support")
        embeddings = self.model(values, support.x, at)
        return self.generate(values, embeddings, support.y) | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logits `[n, ways]`."""
        return self.logits(values, fast, self.model(values | fast, x, Pass(key, 0, "query")))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy of the query set."""
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.logits(values, self.generate(values, support, task.support.y), query)
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, state)

    def generate(self, values: Params, h: Tensor, y: Tensor) -> Params:
        """Return what is generated from embeddings `[n, embedding]` and labels `[n]`; see `adapt`."""
        labels = one_hot(y, self.spec.outputs, h.dtype)
        linear, counts = self.config.generator == "linear", labels.sum(0).clamp_min(1).unsqueeze(-1)
        each = self.u(values, h) if linear else self.u(values, h).tanh()
        mean = labels.T @ each / counts
        if linear:
            return {"weights": mean}
        return {"weights": self.weights(values, mean), "biases": self.biases(values, mean).squeeze(-1)}

    def logits(self, values: Params, fast: Params, h: Tensor) -> Tensor:
        """Return (V h) · W_n, or h · W_n + b_n, `[n, ways]` for embeddings `[n, embedding]`."""
        if self.config.generator == "linear":
            return at_least_float32(self.v(values, h) @ fast["weights"].T)
        return at_least_float32(h @ fast["weights"].T + fast["biases"])
