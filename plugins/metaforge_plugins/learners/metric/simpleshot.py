"""SimpleShot: ordinary pretraining, and in a task the nearest class mean of centred features of length one.

Wang, Chao, Weinberger, van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning",
2019 (arXiv 1911.04623).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    STATE,
    BatchNormPolicy,
    Examples,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    PretrainingLearner,
    Tags,
    at_least_float32,
    one_hot,
)

CENTRE = f"{STATE}centre"
# The length below which a vector is not scaled to length one: the derivative would be too large.
SHORTEST = 1e-5


class SimpleShotOptions(Options):
    """Options of SimpleShot."""

    transform: Literal["none", "l2", "centred-l2"] = Field(
        "centred-l2",
        description="what is done to features: nothing, scaling to length one, or subtracting their mean over the"
        " training classes and then scaling (UN, L2N and CL2N in the paper)",
    )
    momentum: float = Field(0.05, gt=0, le=1, description="weight of a batch in the running mean of the features")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class SimpleShot(PretrainingLearner):
    """Pretrains with a linear classifier of all training classes; a query gets the class with the nearest mean feature.

    Nothing is trained in a task. The score in training is the accuracy among all training classes.

    Departures from the paper:
    - Mean of the features. The authors compute it over all training images after the training. Here it is a running
      mean over the batches of the training, as the statistics of batch norm. `learner.momentum` is the weight of a
      batch.
    - Network. The authors' have from 4 convolutions to 121 layers; suggested are four convolutions with strides.
      `--backbone` gives others.
    - Training. The authors train 90 epochs by gradient descent with momentum, learning rate 0.1 and batches of 256
      images, and choose the epoch on validation classes. They have no results for Omniglot. Suggested are 3,000 outer
      steps of Adam on 60 classes with 2 images each, with learning rate 5e-3, lowered by a cosine.
    """

    Config = SimpleShotOptions
    reference: ClassVar[str] = "Wang, Chao, Weinberger, van der Maaten 2019, arXiv 1911.04623, section 3"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, uses_classes=True, varied_shots=True)
    config: SimpleShotOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 60, "queries": 1, "tasks": 1, "steps": 3000, "lr": 5e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "stride-flat"},
        }
    }

    def __init__(self, config: SimpleShotOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)

    def init(self, key: Key) -> Params:
        """Return the values of the network and the classifier, and the running mean of the features, zero at first."""
        values = super().init(key)
        return values | {CENTRE: values["classifier.weight"].new_zeros(self.model.features)}

    def state_in_training(self, values: Params, features: Tensor) -> Params:
        """Return the change of the running mean of the features."""
        mean = at_least_float32(features).mean(0)
        return {CENTRE: self.config.momentum * (mean - values[CENTRE])}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the mean transformed feature of each class `[ways, features]`."""
        at = Pass(key, 0, "support")
        features = self.transformed(values, self.model(values, support.x, at))
        labels = one_hot(support.y, self.spec.outputs, features.dtype)
        means = labels.T @ features / labels.sum(0).clamp_min(1).unsqueeze(-1)
        return {"means": means} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return −‖f(x) − c_n‖² for each class `[n, ways]` (equation 1)."""
        features = self.transformed(values, self.model(values | fast, x, Pass(key, 0, "query")))
        return -(features.unsqueeze(1) - fast["means"]).square().sum(-1)

    def transformed(self, values: Params, features: Tensor) -> Tensor:
        """Return features `[n, ...]` as vectors `[n, features]`, centred and of length one, as `transform` says."""
        vectors = at_least_float32(features.flatten(1))
        if self.config.transform == "centred-l2":
            vectors = vectors - values[CENTRE]
        return vectors if self.config.transform == "none" else F.normalize(vectors, dim=-1, eps=SHORTEST)
