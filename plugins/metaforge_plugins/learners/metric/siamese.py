"""Siamese networks: a network that tells whether two examples have the same class.

Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", ICML deep learning workshop 2015.
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
    fold_in,
    one_hot,
    score,
    uniform,
)

# The logit of a class without support examples; a probability of zero, with a finite logarithm.
ABSENT = -1e4


class SiameseOptions(Options):
    """Options of siamese networks."""

    units: int = Field(4096, ge=1, le=65536, description="units of the layer whose outputs are compared")
    pairs: Literal["all", "drawn"] = Field(
        "all",
        description="the pairs of a query and a support example that are trained on: all, or two for each query that"
        " are drawn at random, one of the same class and one of another",
    )
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class Siamese(ModelLearner):
    """Learns to verify whether two examples have the same class, and labels a query by its most similar example.

    Both kinds of pairs, of the same class and of different classes, have equal weight in the loss. The pairs are those
    of a training task; with `train.ways` as large as the number of training classes, a query meets all of them.

    Departures from the paper:
    - Pairs. The authors draw 30,000 to 150,000 pairs before the training, half of them of the same class. Here they are
      drawn in every step, from 60 classes as suggested. `learner.pairs=drawn` takes two pairs per query.
    - Network. The authors' has four convolutions of 10, 7, 4 and 4 pixels without batch norm, for images of 105 pixels,
      and 4,096 units; suggested are four blocks with batch norm, and 256 units. No option gives their convolutions.
      `learner.units=4096` gives their number of units.
    - Initial values. The authors draw the weights from N(0, 0.01) and N(0, 0.2), and the biases from N(0.5, 0.01); here
      all are drawn as PyTorch draws them, and the bias of the comparison is 0. No option gives theirs.
    - Training. The authors use gradient descent with momentum, with a rate, a momentum and a weight decay for each
      layer, on batches of 128 pairs, and stop by the validation error. Suggested are 1,500 steps of Adam with learning
      rate 3e-3, lowered by a cosine, without weight decay.
    - Images of Omniglot. The authors distort each image by affine maps of 8 kinds, and evaluate on 20 classes of one
      alphabet. By default the data set `omniglot` has rotated copies in training, and tasks of any alphabets.
      `dataset.shift` and `dataset.tilt` distort the images.
    """

    Config = SiameseOptions
    reference: ClassVar[str] = "Koch, Zemel, Salakhutdinov 2015, sections 3.1 and 3.2"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: SiameseOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"units": 256},
            "train": {"ways": 60, "queries": 1, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: SiameseOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm, outputs=config.units)

    def init(self, key: Key) -> Params:
        """Return the network's values, the weights α of the distances, and the bias b."""
        weights = (2 * uniform(fold_in(key, "weights"), (self.config.units,)) - 1) / self.config.units**0.5
        return super().init(key) | {"compare.weight": weights, "compare.bias": torch.tensor(0.0)}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the embeddings `[n, units]` of the support set, and its labels as one-hot vectors."""
        at = Pass(key, 0, "support")
        embeddings = self.model(values, support.x, at).sigmoid()
        labels = one_hot(support.y, self.spec.outputs, embeddings.dtype)
        return {"embeddings": embeddings, "labels": labels} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logit of the most similar support example of each class `[n, ways]`."""
        return classes_of(self.pairs(values, fast, x, key), fast["labels"])

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the binary cross-entropy of the pairs, of which both kinds have the weight ½."""
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.compare(values, support.sigmoid(), query.sigmoid())
        labels, own = (one_hot(part.y, self.spec.outputs, logits.dtype) for part in (task.support, task.query))
        same = own @ labels.T
        each = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
        accuracy = score("classification", classes_of(logits, labels), task.query.y).detach()
        metrics = {"score": accuracy, "verification": verification(logits, same)}
        return (self.pair_weights(same, key) * each).sum(), Aux(metrics, state)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the accuracy of verification over all pairs, where both kinds have the weight ½."""
        fast = self.adapt(values, task.support)
        same = one_hot(task.query.y, self.spec.outputs, fast["labels"].dtype) @ fast["labels"].T
        return {"verification": verification(self.pairs(values, fast, task.query.x, None), same)}

    def pairs(self, values: Params, fast: Params, x: Tensor, key: Key | None) -> Tensor:
        """Return the logit that a query and a support example have the same class `[queries, n]`."""
        return self.compare(values, fast["embeddings"], self.model(values | fast, x, Pass(key, 0, "query")).sigmoid())

    def compare(self, values: Params, support: Tensor, query: Tensor) -> Tensor:
        """Return Σ_j α_j |h_j(x_1) − h_j(x_2)| + b, the logit of p(same) `[queries, n]`."""
        distances = at_least_float32((query.unsqueeze(1) - support).abs())
        return (distances * values["compare.weight"]).sum(-1) + values["compare.bias"]

    def pair_weights(self, same: Tensor, key: Key) -> Tensor:
        """Return the weights of the pairs `[queries, n]`, whose sum is 1; `same` is 1 in those of one class."""
        kinds = torch.stack([same, 1 - same])
        if self.config.pairs == "drawn":
            # Of each kind the pair with the largest random number.
            numbers = uniform(fold_in(key, "pairs"), tuple(kinds.shape)).to(same)
            kinds = kinds * one_hot((numbers + kinds).argmax(-1).flatten(), same.shape[1], same.dtype).view_as(kinds)
        halves: Tensor = kinds / (2 * kinds.sum((1, 2), keepdim=True).clamp_min(1))
        return halves.sum(0)


def classes_of(pairs: Tensor, labels: Tensor) -> Tensor:
    """Return the largest logit `[queries, ways]` over the support examples of each class, from those of the pairs."""
    return torch.where(labels > 0, pairs.unsqueeze(-1), ABSENT).amax(1)


def verification(logits: Tensor, same: Tensor) -> Tensor:
    """Return the mean of the accuracies of both kinds of pairs at p(same) = ½."""
    right = ((logits > 0) == (same > 0)).to(same.dtype)
    kinds = torch.stack([same, 1 - same])
    return ((kinds * right).sum((1, 2)) / kinds.sum((1, 2)).clamp_min(1)).mean()
