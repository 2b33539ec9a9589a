"""Prototypical networks: classify a query by the nearest class mean in a learned feature space.

Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
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
    fold_in,
    one_hot,
    score,
)


class ProtoNetOptions(Options):
    """Options of prototypical networks."""

    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="squared Euclidean distance, or cosine")
    norm: BatchNormPolicy = Field("running", description="whose statistics batch norm uses in evaluation")


class ProtoNet(ModelLearner):
    """Classifies a query by its distance to the mean feature of each class's support examples."""

    Config = ProtoNetOptions
    reference: ClassVar[str] = "Snell, Swersky, Zemel 2017, arXiv 1703.05175, algorithm 1"
    tags: ClassVar[Tags] = Tags(needs=frozenset({"backbone"}), fixed_ways=False)
    # As many ways as the authors; at an equal number of images, more classes taught faster than more queries.
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 60, "queries": 2, "tasks": 1, "steps": 1500, "schedule": "cosine", "lr": 3e-3},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: ProtoNetOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.ways = parts.spec.outputs

    def init(self, key: Key) -> Params:
        """Return the embedding network's values."""
        return self.model.init(fold_in(key, "model"))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the prototypes `[ways, features]`: c_n = mean of f(x) over class n's support (equation 1)."""
        at = Pass(key, 0, "support")
        return self.prototypes(self.embed(values, support.x, at), support.y) | self.model.statistics(
            values, support.x, at
        )

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return −d(f(x), c_n) as logits `[n, ways]` (equation 2)."""
        return self.logits(self.embed(values | fast, x, Pass(key, 0, "query")), fast["prototypes"])

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean negative log-probability of the queries' classes.

        Under `running` statistics support and query are embedded as one batch, as the authors do.
        """
        if self.norm != "running":
            logits = self.predict(values, self.adapt(values, task.support, key=key), task.query.x, key=key)
            return cross_entropy(logits, task.query.y), self.figures(logits, task, {})
        both = torch.cat([task.support.x, task.query.x])
        features, state = self.model.observe(values, both, Pass(key, 0, "query"))
        support, query = features.flatten(1).tensor_split([len(task.support.x)])
        logits = self.logits(query, self.prototypes(support, task.support.y)["prototypes"])
        return cross_entropy(logits, task.query.y), self.figures(logits, task, state)

    def embed(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        """Return features `[n, features]`."""
        return self.model(values, x, at).flatten(1)

    def prototypes(self, features: Tensor, y: Tensor) -> Params:
        """Return the mean feature of each class `[ways, features]`."""
        members = one_hot(y, self.ways, features.dtype)
        return {"prototypes": members.T @ features / members.sum(0).unsqueeze(-1)}

    def logits(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return minus the squared distance (or the cosine) of each query to each prototype `[n, ways]`."""
        if self.config.distance == "cosine":
            return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T
        return -(at_least_float32(features).unsqueeze(1) - at_least_float32(prototypes).unsqueeze(0)).square().sum(-1)

    @staticmethod
    def figures(logits: Tensor, task: Task, state: Params) -> Aux:
        """Return the query accuracy as a figure, and the state's change."""
        return Aux({"score": score("classification", logits, task.query.y).detach()}, state)
