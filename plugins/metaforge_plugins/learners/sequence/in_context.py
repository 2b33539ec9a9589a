"""In-context learning: a transformer reads the examples of a task and answers queries without changing its weights.

Nguyen, Grover, "Transformer Neural Processes", ICML 2022 (arXiv 2207.04179), and Müller, Hollmann, Pineda Arango,
Grabocka, Hutter, "Transformers Can Do Bayesian Inference", ICLR 2022 (arXiv 2112.10510).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    StreamLearner,
    Tags,
    Task,
    at_least_float32,
    coverage,
    fold_in,
    initial_linear,
    log_normal,
    mean_squared_error,
    one_hot,
    permutation,
    uniform,
)


class InContextOptions(Options):
    """Options of the in-context learner."""

    width: int = Field(64, ge=1, le=8192, description="width of a token (d_model)")
    layers: int = Field(4, ge=1, le=100, description="layers of the transformer")
    heads: int = Field(4, ge=1, le=64, description="attention heads of a layer")
    hidden: int = Field(128, ge=1, le=65536, description="hidden units of the feed-forward part of a layer")
    floor: float = Field(0.05, gt=0, lt=1, description="in regression: smallest standard deviation of a prediction")
    vary_context: bool = Field(
        True, description="in training on regression, use a random number of the support examples, from none to all"
    )

    @model_validator(mode="after")
    def divisible(self) -> Self:
        """Raise `ValueError` if the heads do not divide the width."""
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, which is no multiple of the number of heads, {self.heads}")
        return self


class InContext(StreamLearner):
    """Reads the examples of a task with a transformer, which has learned to learn from them; no weight changes.

    A token is an example with its target, or a query without one. A query attends to examples and to itself only, so
    queries are answered independently. There is no positional encoding.

    In regression the examples are a set, and each query gets a normal distribution, as in transformer neural processes
    (TNP-D). In classification all examples of a task are one stream in random order, as in MANN: an example attends to
    those before it, and is also asked for before its label is known; the metrics `instance_1`, `instance_2`, … are the
    accuracy at the first, second, … example of a class. The accuracy of an evaluation is another: the support set comes
    first, in the order of the episode, and each query is answered from it alone.

    Departures from the paper:
    - Queries. In TNP-D they attend to the context only; here also to themselves, so that there may be no context at
      all. No option changes that.
    - Classification. The papers have no streams of images; the protocol is that of MANN (arXiv 1605.06065).
    - Network. In TNP-D a token is made by four layers from input and target, and there are six layers of attention;
      here it is a sum of linear functions of the target and of the features of a backbone, and suggested are four
      layers. `learner.layers=6` gives theirs. The norms are before each part of a layer (pre-norm); in theirs after.
      No option changes that.
    - Output. The distribution is normal with σ = 0.05 + 0.95 softplus(s), as in TNP-D on images; on functions of one
      variable theirs has no bound. `learner.floor` changes the smallest value. The bins of prior-fitted networks are no
      option.
    - Size of the context. In TNP-D it is the same for all tasks of a batch; here each task has its own, from none to
      all of its support examples. `learner.vary_context=false` uses all of them.
    - Training. TNP-D takes 100,000 steps of Adam on 16 tasks with learning rate 5e-4, lowered by a cosine; suggested
      are 10,000 steps on 32 tasks with learning rate 1e-3 after a warm-up. `train.steps=100000`, `train.tasks=16`,
      `train.lr=0.0005` and `train.warmup=0` give theirs.
    """

    Config = InContextOptions
    reference: ClassVar[str] = "Nguyen and Grover 2022, arXiv 2207.04179, section 3.2"
    tags: Tags = Tags(kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone"}), stochastic=True)
    config: InContextOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 5, "shots": 1, "queries": 4, "tasks": 8, "steps": 3000, "lr": 1e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"variant": "pool"},
        },
        "regression": {
            "train": {"steps": 10000, "tasks": 32, "lr": 1e-3, "warmup": 500},
            "schedule": {"name": "cosine"},
        },
    }

    def __init__(self, config: InContextOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")
        self.classes = parts.spec.kind.classes

    def init(self, key: Key) -> Params:
        """Return the values of the backbone and of the transformer."""
        c, outputs = self.config, self.spec.outputs
        values = super().init(key) | {"token.query": torch.zeros(c.width)}
        shapes = {"token.features": (self.model.features, c.width), "token.target": (outputs, c.width)}
        for i in range(c.layers):
            shapes[f"layer{i}.attend"] = (c.width, 3 * c.width)
            shapes[f"layer{i}.merge"] = (c.width, c.width)
            shapes[f"layer{i}.expand"], shapes[f"layer{i}.reduce"] = (c.width, c.hidden), (c.hidden, c.width)
            values |= initial_norm(f"layer{i}.norm1", c.width) | initial_norm(f"layer{i}.norm2", c.width)
        shapes["head"] = (c.width, outputs if self.classes else 2 * outputs)
        for name, (before, after) in shapes.items():
            values |= initial_linear(name, (after, before), key)
        return values | initial_norm("head.norm", c.width)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Tensor:
        """Return the keys and values of the support examples in every layer `[layers, 2, n, width]`."""
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        return self.read(values, features, support.y, features.new_ones(len(features)).bool())

    def predict(self, values: Params, fast: Tensor, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits or means `[n, outputs]`; a query sees the support examples and itself."""
        features = self.model(values, x, Pass(key, 0, "query")).flatten(1)
        seen = features.new_ones(len(features), fast.shape[2]).bool()
        return self.answer(values, fast, features, seen)[:, : self.spec.outputs]

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy over a stream of all examples, or the mean of −log N(y; μ, σ)."""
        if self.classes:
            return super().loss(values, task, key)
        mean, deviation, state = self.distribution(values, task, key)
        metrics = {"score": mean_squared_error(mean, task.query.y).detach()}
        return -log_normal(task.query.y, mean, deviation).mean(), Aux(metrics, state)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the accuracy at the first, second, … example of a class, or likelihood and coverage."""
        if self.classes:
            return super().measure(values, task, key)
        mean, deviation, _ = self.distribution(values, task, None)
        log_likelihood = log_normal(task.query.y, mean, deviation).sum(-1).mean()
        return {"log_likelihood": log_likelihood, "coverage_95": coverage(task.query.y, mean[None], deviation[None])}

    def score_stream(self, values: Params, features: Tensor, y: Tensor) -> Tensor:
        """Return the logits of a stream `[n, ways]`: each example is asked for as a query that sees those before it."""
        everything = features.new_ones(len(y)).bool()
        return self.answer(
            values, self.read(values, features, y, everything), features, earlier(everything, itself=False)
        )

    def distribution(self, values: Params, task: Task, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return μ and σ of the queries `[n, outputs]`, and what to add to the `state.` entries."""
        support, query, state = self.model.observe_task(values, task, key)
        visible = self.visible(support, key)
        memory = self.read(values, support, task.support.y, visible)
        mean, s = self.answer(values, memory, query, visible.expand(len(query), -1)).chunk(2, -1)
        return mean, self.config.floor + (1 - self.config.floor) * F.softplus(s), state

    def visible(self, support: Tensor, key: Key | None) -> Tensor:
        """Return which support examples are the context: in training a random number of them, else all `[n]`."""
        n = len(support)
        if key is None or not self.config.vary_context:
            return support.new_ones(n).bool()
        count = (uniform(fold_in(key, "count"), ()) * (n + 1)).floor()
        return permutation(fold_in(key, "context"), n) < count

    def read(self, values: Params, features: Tensor, y: Tensor, visible: Tensor) -> Tensor:
        """Return keys and values of examples in every layer `[layers, 2, n, width]`.

        Args:
            values: The learner's values.
            features: Features of the examples `[n, features]`.
            y: Their labels `[n]`, or targets `[n, outputs]`.
            visible: Which examples others may see `[n]`. Where tasks have classes, only later examples see them.
        """
        target = one_hot(y, self.spec.outputs, features.dtype) if self.classes else y
        h = linear(values, "token.features", features) + linear(values, "token.target", target)
        mask = earlier(visible) if self.classes else visible | torch.eye(len(y), device=y.device).bool()
        memory = []
        for i in range(self.config.layers):
            query, key, value = self.project(values, i, h)
            scores = (query @ key.mT).masked_fill(~mask, -torch.inf)
            h = self.combine(values, i, h, scores.softmax(-1) @ value)
            memory.append(torch.stack([join(key), join(value)]))
        return torch.stack(memory)

    def answer(self, values: Params, memory: Tensor, features: Tensor, seen: Tensor) -> Tensor:
        """Return outputs for queries `[m, features]`; a query sees itself and the examples of its row of `seen`."""
        h = linear(values, "token.features", features) + values["token.query"]
        for i, (keys, vals) in enumerate(self.split(part) for part in memory):
            query, key, value = self.project(values, i, h)
            of_examples = (query @ keys.mT).masked_fill(~seen, -torch.inf)
            weights = torch.cat([of_examples, (query * key).sum(-1, keepdim=True)], -1).softmax(-1)
            h = self.combine(values, i, h, weights[..., :-1] @ vals + weights[..., -1:] * value)
        return linear(values, "head", layer_norm(values, "head.norm", h))

    def project(self, values: Params, i: int, h: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values of layer `i`, each `[heads, n, width / heads]`."""
        projected = linear(values, f"layer{i}.attend", layer_norm(values, f"layer{i}.norm1", h))
        query, key, value = (self.split(part) for part in projected.chunk(3, -1))
        return query / query.shape[-1] ** 0.5, key, value

    def split(self, x: Tensor) -> Tensor:
        """Return `[..., n, width]` as `[..., heads, n, width / heads]`."""
        heads, width = self.config.heads, self.config.width
        return x.reshape(*x.shape[:-1], heads, width // heads).transpose(-2, -3)

    def combine(self, values: Params, i: int, h: Tensor, attended: Tensor) -> Tensor:
        """Return the tokens after layer `i`, from those before it and what they attended to `[heads, n, ...]`."""
        h = h + linear(values, f"layer{i}.merge", join(attended))
        inner = linear(values, f"layer{i}.expand", layer_norm(values, f"layer{i}.norm2", h))
        return h + linear(values, f"layer{i}.reduce", F.gelu(inner))


def join(x: Tensor) -> Tensor:
    """Return `[heads, n, size]` as `[n, heads * size]`."""
    return x.transpose(-2, -3).flatten(-2)


def earlier(visible: Tensor, *, itself: bool = True) -> Tensor:
    """Return which examples each one sees `[n, n]`: the visible ones `[n]` before it, and itself if `itself`."""
    return visible.expand(len(visible), -1).tril(0 if itself else -1)


def linear(values: Params, name: str, x: Tensor) -> Tensor:
    """Return the output of the linear layer of this name."""
    return F.linear(x, values[f"{name}.weight"], values[f"{name}.bias"])


def initial_norm(name: str, width: int) -> Params:
    """Return the scale 1 and the shift 0 of a layer norm."""
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def layer_norm(values: Params, name: str, x: Tensor) -> Tensor:
    """Return `x` `[..., width]` with mean 0 and variance 1 of each token, scaled and shifted."""
    x = at_least_float32(x)
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * values[f"{name}.weight"] + values[f"{name}.bias"]
