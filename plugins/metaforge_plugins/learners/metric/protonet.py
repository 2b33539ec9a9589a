"""Prototypical networks: classify a query by the nearest class mean in a learned feature space.

Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017 (arXiv 1703.05175).
"""

from __future__ import annotations

from typing import ClassVar, Literal

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
    one_hot,
    score,
)


class ProtoNetOptions(Options):
    """Options of prototypical networks."""

    distance: Literal["euclidean", "cosine"] = Field("euclidean", description="squared Euclidean distance, or cosine")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class ProtoNet(ModelLearner):
    """Classifies a query by its distance to the mean feature of each class's support examples.

    Departures from the paper:
    - The method has none: distances are squared Euclidean, batch norm uses running averages in evaluation, and `conv4`
      with `variant=pool` has the layers of the authors' network. `learner.distance=cosine` is an addition.
    - Training on Omniglot. The authors train with 60 ways and 5 queries per class, by Adam with learning rate 1e-3,
      halved every 2,000 episodes, and stop when validation with 5 ways has not improved for 200 epochs of 100 episodes.
      Suggested are 60 ways with 2 queries per class, and 1,500 steps with learning rate 3e-3, lowered by a cosine.
      `train.queries=5`, `train.lr=0.001`, `schedule.name=step`, `schedule.every=2000`, `schedule.gamma=0.5`,
      `train.validate_every=100` and the hook `early-stop` with `hooks.early-stop.patience=200` give theirs.
    - Classes of Omniglot. The authors use the split of Vinyals et al., and rotated copies are classes in training and
      in evaluation. By default the data set `omniglot` splits by alphabet, with rotated copies in training only.
      `dataset.split=file`, with the lists of the split, and `dataset.rotations=all` give theirs.
    """

    Config = ProtoNetOptions
    reference: ClassVar[str] = "Snell, Swersky, Zemel 2017, arXiv 1703.05175, algorithm 1"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: ProtoNetOptions
    # The authors train with 60 ways. At an equal number of images, more classes train faster than more queries.
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 60, "queries": 2, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: ProtoNetOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.ways = parts.spec.outputs

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the prototypes `[ways, features]`: c_n is the mean of f(x) over the support set of class n."""
        at = Pass(key, 0, "support")
        features = self.embed(values, support.x, at)
        return {"prototypes": self.prototypes(features, support.y)} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return −d(f(x), c_n) as logits `[n, ways]` (equation 2)."""
        return self.logits(self.embed(values | fast, x, Pass(key, 0, "query")), fast["prototypes"])

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean of −log p(y | x) over the query set (algorithm 1)."""
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.logits(query, self.prototypes(support, task.support.y))
        accuracy = score("classification", logits, task.query.y)
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy.detach()}, state)

    def embed(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        """Return the features f(x) `[n, features]`."""
        return self.model(values, x, at).flatten(1)

    def prototypes(self, features: Tensor, y: Tensor) -> Tensor:
        """Return the mean feature of each class `[ways, features]` (equation 1)."""
        members = one_hot(y, self.ways, features.dtype)
        return members.T @ features / members.sum(0).unsqueeze(-1)

    def logits(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """Return minus the squared distance (or the cosine) of each query to each prototype `[n, ways]`."""
        if self.config.distance == "cosine":
            return F.normalize(features, dim=-1) @ F.normalize(prototypes, dim=-1).T
        return -(at_least_float32(features).unsqueeze(1) - at_least_float32(prototypes).unsqueeze(0)).square().sum(-1)
