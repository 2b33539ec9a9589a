"""R2-D2: ridge regression on features as the head of each task, differentiated through its solution.

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form Solvers", ICLR 2019
(arXiv 1805.08136). Details follow the authors' code, bertinetto/r2d2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

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


class R2D2Options(Options):
    """Options of R2-D2."""

    ridge: float = Field(50.0, gt=0, description="factor λ of the squared length of the weights")
    scale: float = Field(10.0, gt=0, description="initial factor of the predictions (α), which is meta-learned")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class R2D2(ModelLearner):
    """Solves each task by ridge regression from features to one-hot labels, whose solution is a formula.

    As in the authors' code, the features have a further entry of 1 for a bias, and λ is multiplied by the number of
    support examples.

    Departures from the paper:
    - Network. The authors' has blocks of 96, 192, 384 and 512 filters with leaky ReLU, and the features of the last two
      blocks; suggested are four blocks of 64 filters with ReLU. No option gives theirs.
    - Training on Omniglot. The authors train with 60 ways and 1 to 10 shots, 600 images per episode, by Adam with
      learning rate 5e-3, halved every 2,000 episodes. Suggested are 20 ways with 1 shot and 5 queries per class, and
      1,500 steps with learning rate 3e-3, lowered by a cosine. `train.ways=60`, `train.shots`, `train.lr=0.005`,
      `schedule.name=step`, `schedule.every=2000` and `schedule.gamma=0.5` give theirs.
    - Images of Omniglot. The authors split the characters at random, with rotated copies as classes. By default the
      data set `omniglot` splits by alphabet, with rotated copies in training only. `dataset.split=random` and
      `dataset.rotations=all` give theirs.
    """

    Config = R2D2Options
    reference: ClassVar[str] = "Bertinetto et al. 2019, arXiv 1805.08136, section 3"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: R2D2Options
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: R2D2Options, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)

    def init(self, key: Key) -> Params:
        """Return the network's values, and the factor α and the offset β of the predictions."""
        return super().init(key) | {"scale": torch.tensor(self.config.scale), "offset": torch.tensor(0.0)}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the weights W of ridge regression `[features + 1, ways]`, the last row of which is the bias."""
        at = Pass(key, 0, "support")
        features = self.model(values, support.x, at).flatten(1)
        return {"weights": self.solve(features, support.y)} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logits α X W + β `[n, ways]` (equation 5)."""
        return self.logits(values, fast["weights"], self.model(values | fast, x, Pass(key, 0, "query")).flatten(1))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy of the query set, differentiated through the solution W."""
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.logits(values, self.solve(support, task.support.y), query)
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, state)

    def solve(self, features: Tensor, y: Tensor) -> Tensor:
        """Return W = (XᵀX + nλ I)⁻¹ XᵀY for support features `[n, features]` and labels `[n]` (equations 3 and 4)."""
        x = with_ones(at_least_float32(features))
        labels = one_hot(y, self.spec.outputs, x.dtype)
        n, size = x.shape
        ridge = n * self.config.ridge
        if n > size:
            primal: Tensor = torch.linalg.solve(x.T @ x + ridge * torch.eye(size).to(x), x.T @ labels)
            return primal
        # By the Woodbury identity W = Xᵀ (XXᵀ + nλ I)⁻¹ Y, where the matrix has the size of the support set.
        dual: Tensor = x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(n).to(x), labels)
        return dual

    def logits(self, values: Params, weights: Tensor, features: Tensor) -> Tensor:
        """Return α X W + β `[n, ways]` for features `[n, features]`."""
        return values["scale"] * (with_ones(at_least_float32(features)) @ weights) + values["offset"]


def with_ones(features: Tensor) -> Tensor:
    """Return features `[n, features]` with a further column of ones, whose weight is a bias."""
    return torch.cat([features, features.new_ones(features.shape[0], 1)], 1)
