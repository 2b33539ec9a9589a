"""Learners and adapters of third parties: with a part of a network, a head of the task, a context, or an adjoint.


They import what a plugin may import.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import (
    Adapter,
    AdapterTags,
    Aux,
    Examples,
    InnerLoopLearner,
    InnerLoopOptions,
    InnerStep,
    Key,
    Learner,
    Model,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    cross_entropy,
    fold_in,
    normal,
    one_hot,
    score,
)

SGD = {"adapters": {"sgd": {"lr": 0.1}}}
DEFAULTS = {"classification": SGD, "regression": SGD}


class HeadOnlyOptions(InnerLoopOptions):
    """Options of a learner that adapts the head alone."""

    adapt: Literal["head"] = Field("head", description="parameters that the inner loop adapts")


class HeadOnly(InnerLoopLearner):
    """Adapts the linear head alone, and meta-learns the body with it (ANIL, Raghu et al. 2020)."""

    Config = HeadOnlyOptions
    reference = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157"
    defaults: ClassVar = DEFAULTS

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the inner loop."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)


class Twins(Learner):
    """Two networks: one embeds support examples, the other queries; a class scores by its mean's inner product."""

    Config = Options
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False)

    def __init__(self, config: Options, parts: Parts) -> None:
        self.ways = parts.spec.outputs
        self.memory = Model.of(parts, norm="running", prefix="memory")
        self.question = Model.of(parts, norm="running", prefix="question")
        self.norm = self.question.norm

    def init(self, key: Key) -> Params:
        """Return the values of both networks."""
        return self.memory.init(fold_in(key, "memory")) | self.question.init(fold_in(key, "question"))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Tensor:
        """Return the class means `[ways, features]`."""
        return self.means(self.memory(values, support.x, Pass(key, role="support")).flatten(1), support.y)

    def means(self, features: Tensor, y: Tensor) -> Tensor:
        """Return the mean features of each class."""
        members = one_hot(y, self.ways, features.dtype)
        return members.T @ features / members.sum(0).unsqueeze(-1)

    def predict(self, values: Params, fast: Tensor, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return inner products `[n, ways]`."""
        return self.question(values, x, Pass(key)).flatten(1) @ fast.T

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the cross-entropy of the queries."""
        features, first = self.memory.observe(values, task.support.x, Pass(key, role="support"))
        query, second = self.question.observe(values, task.query.x, Pass(key))
        logits = query.flatten(1) @ self.means(features.flatten(1), task.support.y).T
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, first | second)


class PrototypeHead(InnerLoopLearner):
    """Starts the inner loop from a head that is made of class means (Proto-MAML, Triantafillou et al. 2020)."""

    Config = InnerLoopOptions
    reference = "Triantafillou et al. 2020, arXiv 1903.03096"
    tags: Tags = replace(
        InnerLoopLearner.tags,
        kinds=frozenset({"classification"}),
        fixed_ways=False,
        other_kinds=False,
        terms=frozenset(),
    )
    defaults: ClassVar = DEFAULTS

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        super().__init__(config, parts, outputs=0)

    def start(self, values: Params, support: Examples, key: Key | None) -> Params:
        """Return the body, and the head 2 c, -|c|^2 with the class means c, scaled by the number of features."""
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        members = one_hot(support.y, self.spec.outputs, features.dtype)
        means = members.T @ features / members.sum(0).unsqueeze(-1)
        head = {"head.weight": 2 * means, "head.bias": -means.square().sum(-1)}
        return super().start(values, support, key) | head

    def logits(self, values: Params, features: Tensor) -> Tensor:
        """Return logits `[n, ways]`."""
        return features.flatten(1) @ values["head.weight"].T + values["head.bias"]

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the loss of the support set with the present body and head."""
        features, state = self.model.observe(values, batch.x, Pass(key, step, "support"))
        return self.criterion(self.logits(values, features), batch.y), state

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits of the queries."""
        values = values | fast
        return self.logits(values, self.model(values, x, Pass(key, self.config.steps, "query")))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the inner loop."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        prediction = self.predict(values, fast, task.query.x, key=key)
        accuracy = score(self.spec.kind, prediction, task.query.y).detach()
        return self.criterion(prediction, task.query.y), Aux({"score": accuracy}, state)


class ContextOptions(InnerLoopOptions):
    """Options of a learner that adapts a context vector."""

    context: int = Field(4, ge=1, le=1000, description="size of the context vector")
    steps: int = Field(2, ge=0, le=100, description="inner steps in training")
    adapt: Literal["context"] = Field("context", description="what the inner loop adapts: the context vector alone")


class ContextOnly(InnerLoopLearner):
    """Adapts a context vector that starts at zero in each task (CAVIA, Zintgraf et al. 2019)."""

    Config = ContextOptions
    reference = "Zintgraf et al. 2019, arXiv 1810.03642, algorithm 1"
    defaults: ClassVar = DEFAULTS

    def __init__(self, config: ContextOptions, parts: Parts) -> None:
        super().__init__(config, parts, context=config.context)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)


class ImplicitOptions(InnerLoopOptions):
    """Options of a learner whose inner loop is differentiated as a minimum."""

    steps: int = Field(16, ge=1, le=1000, description="inner steps in training")
    test_steps: int = Field(16, ge=0, le=1000, description="inner steps in evaluation")
    adjoint: Literal["implicit"] = Field("implicit", description="how the inner loop is differentiated")
    adapt: Literal["head"] = Field("head", description="parameters that the inner loop adapts: a convex problem")
    proximal: float = Field(2.0, ge=0, description="factor of the proximal term")
    solver_steps: int = Field(12, ge=1, le=1000, description="steps of conjugate gradients")


class Implicit(InnerLoopLearner):
    """Differentiates the inner loop on the head as the minimum of a proximal loss (iMAML, Rajeswaran et al. 2019)."""

    Config = ImplicitOptions
    reference = "Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630"
    defaults: ClassVar = DEFAULTS
    tags: Tags = replace(InnerLoopLearner.tags, converges_at=60)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss after the inner loop."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)


class LossScaled(Adapter):
    """Steps that are scaled by a meta-learned power of the support loss; the initial rates are drawn from the key."""

    Config = Options

    def __init__(self, config: Options) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return a random rate for each parameter, and the power."""
        rates = {f"rate.{n}": 0.1 + 0.01 * normal(fold_in(key, n), (), v.dtype) for n, v in params.items()}
        return rates | {"power": next(iter(params.values())).new_tensor(0.5)}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates."""
        scale = (step.loss + 1e-3) ** meta["power"]
        return {name: meta[f"rate.{name}"] * scale * grad for name, grad in grads.items()}, state


class Signs(Adapter):
    """Steps of one size in the direction of the gradient's sign, which has no derivative."""

    Config = Options
    tags = AdapterTags(detaches=True)

    def __init__(self, config: Options) -> None:
        self.config = config

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return the updates."""
        return {name: 0.01 * grad.detach().sign() for name, grad in grads.items()}, state
