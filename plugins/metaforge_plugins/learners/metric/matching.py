"""Matching networks: label a query by attention over the support examples.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning", NeurIPS 2016
(arXiv 1606.04080).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    BatchNormPolicy,
    Examples,
    Key,
    LSTMCell,
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
    make_key,
    one_hot,
    permutation,
    score,
)

# The length below which a vector is not scaled to length one: the derivative would be too large.
SHORTEST = 1e-5


class MatchingOptions(Options):
    """Options of matching networks."""

    full_context: bool = Field(False, description="whether features depend on the whole support set (FCE)")
    reads: int = Field(5, ge=1, le=100, description="reads of the support set per query, with full_context (K)")
    scale: float = Field(1.0, gt=0, le=1000, description="factor of the cosines before the softmax; 1 in the paper")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class Matching(ModelLearner):
    """Labels a query by attention over the support examples, whose weights are a softmax of cosine similarities.

    With `train.steps=0` and `train.init_from=RUN` it evaluates the features of another run without its head, as NIL
    (Raghu et al. 2020, arXiv 1909.09157); for a run of a learner with a head, such as `anil`, with
    `train.init_patterns=["model.0.* -> model.*"]`. The backbone and `learner.norm` must be those of the run.

    Departures from the paper:
    - Scale of the cosines. In the paper the softmax is of the cosines, so that with five classes and one shot no
      probability exceeds 0.65; suggested is 10 times the cosines. `learner.scale=1` gives the paper's.
    - Full context. The authors say that it makes no difference on Omniglot; it is off by default.
      `learner.full_context=true` gives it. The order in which its LSTM reads the support set is drawn for each task in
      training; in evaluation it is the same in all tasks of a size.
    - Fine-tuning. The paper also reports scores after further training on the support set. No option gives them.
    - Training on Omniglot. The authors do not state the optimiser. Suggested are 20 ways with 5 queries per class, and
      1,500 steps of Adam with learning rate 3e-3, lowered by a cosine.
    - Images of Omniglot. The authors train on 1,200 characters and their rotated copies, and evaluate on 423. By
      default the data set `omniglot` splits by alphabet, with rotated copies in training only. `dataset.split=file`,
      with the lists of the split, and `dataset.rotations=all` give theirs.
    """

    Config = MatchingOptions
    reference: ClassVar[str] = "Vinyals et al. 2016, arXiv 1606.04080, sections 2.1 and A"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: MatchingOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"scale": 10.0},
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: MatchingOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        size = self.model.features
        self.forward, self.backward = LSTMCell("forward", size, size), LSTMCell("backward", size, size)
        self.reader = LSTMCell("reader", size, size, recurrent=2 * size)

    def init(self, key: Key) -> Params:
        """Return the network's values, with full context also those of its three LSTMs."""
        cells = (self.forward, self.backward, self.reader) if self.config.full_context else ()
        return super().init(key) | {name: value for cell in cells for name, value in cell.init(key).items()}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the embeddings g(x_i, S) `[n, features]` of the support set, and its labels as one-hot vectors."""
        at = Pass(key, 0, "support")
        features = self.model(values, support.x, at).flatten(1)
        return self.memory(values, features, support.y, key) | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logarithms of the probabilities of the classes `[n, ways]`."""
        return self.attend(values, fast, self.model(values | fast, x, Pass(key, 0, "query")).flatten(1))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean of −log P(y | x, S) over the query set (equation 6)."""
        support, query, state = self.model.observe_task(values, task, key)
        log_p = self.attend(values, self.memory(values, support, task.support.y, key), query)
        accuracy = score("classification", log_p, task.query.y).detach()
        return cross_entropy(log_p, task.query.y), Aux({"score": accuracy}, state)

    def memory(self, values: Params, features: Tensor, y: Tensor, key: Key | None) -> Params:
        """Return the embeddings g(x_i, S) of the support set, and its labels; see `adapt`."""
        labels = one_hot(y, self.spec.outputs, features.dtype)
        if not self.config.full_context:
            return {"embeddings": features, "labels": labels}
        order = permutation(fold_in(make_key(0) if key is None else key, "order"), len(y)).to(y.device)
        features, labels = features[order], labels[order]
        # g(x_i, S) = h→_i + h←_i + g'(x_i): an LSTM in each direction, and the features themselves (section A.2).
        both = self.forward.run(values, features) + self.backward.run(values, features, reverse=True)
        return {"embeddings": features + both, "labels": labels}

    def attend(self, values: Params, fast: Params, features: Tensor) -> Tensor:
        """Return log P(y | x, S) = log Σ_i a(x, x_i) y_i `[n, ways]` for features `[n, features]` (equation 1)."""
        g = fast["embeddings"]
        f = self.read(values, g, features) if self.config.full_context else features
        cosines = at_least_float32(F.normalize(f, dim=-1, eps=SHORTEST) @ F.normalize(g, dim=-1, eps=SHORTEST).T)
        p = (self.config.scale * cosines).softmax(-1) @ fast["labels"].to(cosines)
        # A class without support examples has the probability zero, whose logarithm has no derivative.
        return p.clamp_min(torch.finfo(p.dtype).tiny).log()

    def read(self, values: Params, g: Tensor, features: Tensor) -> Tensor:
        """Return f(x, S) `[n, features]`: an LSTM that reads the support set K times by attention (section A.1)."""
        h, c = self.reader.zeros(features)
        r, projected = torch.zeros_like(features), self.reader.project(values, features)
        for _ in range(self.config.reads):
            h, c = self.reader.step(values, projected, torch.cat([h, r], -1), c)
            h = h + features
            r = (h @ g.T).softmax(-1) @ g
        return h
