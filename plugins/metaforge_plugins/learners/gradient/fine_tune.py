"""Fine-tuning: train one network on all tasks jointly, and in a task continue with gradient steps on its support set.

The pretrained network of Finn, Abbeel, Levine 2017 (arXiv 1703.03400, section 5.1), with which they compare MAML; in
classification the fine-tuning baseline of Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Adjoint,
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
    criterion,
    descend,
    fold_in,
    matching,
    score,
    sum_of,
    uniform,
)
from metaforge.errors import ConfigError

HEAD = ("head.weight", "head.bias")
# The classifier of all training classes, whose place a new head takes in each task.
CLASSIFIER = ("classifier.weight", "classifier.bias")


class FineTuneOptions(Options):
    """Options of fine-tuning."""

    steps: int = Field(10, ge=0, le=10_000, description="gradient steps in a task")
    adapt: Literal["all", "weights"] = Field(
        "all", description="parameters of the body that are fine-tuned: all, or all but those of norm layers"
    )
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses in a task")


class FineTune(ModelLearner):
    """Trains one network on all tasks jointly, without adaptation; in a task, the run's adapter moves all its weights.

    In classification the training is ordinary pretraining with a linear classifier of all training classes, and its
    score is the accuracy among them; a task begins with a new head of zeros, which alone moves in the first step. In
    other kinds of tasks the head is trained jointly too (the multi-task baseline). With `train.steps=0` nothing is
    trained, and each task begins with random weights.

    Departures from the paper:
    - Inner rate. The authors tune the step size automatically; here it is that of the adapter, such as
      `adapters.sgd.lr`.
    - Steps in a task. The authors of MAML fine-tune sinusoids by 10 steps, as here.
    - Training on sinusoids. That of the authors is not described. Here a batch has the support and query sets of 25
      tasks, and there are 10,000 outer steps, as suggested for MAML. `train.tasks` and `train.steps` change that.
    - Initial head in classification. It is zero, so that no class is preferred before the first step, and other labels
      of the support set permute the predictions. No option changes that.
    - Batches of pretraining in classification. Support and query set of a task are one batch, so that each class of it
      has the same number of images; suggested are 60 classes with 3 images each. No option gives images drawn
      regardless of their classes.
    - Batch norm. In a task it uses the running averages of pretraining. `learner.norm` has other policies.
    """

    Config = FineTuneOptions
    reference: ClassVar[str] = "Finn, Abbeel, Levine 2017, arXiv 1703.03400, section 5.1"
    tags: Tags = Tags(
        kinds=frozenset({"classification", "regression"}),
        needs=frozenset({"backbone", "adapter"}),
        adapts=True,
        fixed_ways=False,
        other_kinds=True,
        uses_classes=True,
        varied_shots=True,
    )
    config: FineTuneOptions
    defaults: ClassVar = {
        "classification": {
            "adapters": {"sgd": {"lr": 0.1}},
            "train": {"ways": 60, "queries": 2, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        },
        "multi-label": {"adapters": {"sgd": {"lr": 0.1}}, "train": {"steps": 5000, "tasks": 16}},
        "regression": {"adapters": {"sgd": {"lr": 0.01}}, "train": {"steps": 10000, "tasks": 25}},
    }

    def __init__(self, config: FineTuneOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        assert parts.adapter is not None, "the learner's tags do not name an adapter among its needs"
        self.adapter, self.criterion, self.steps = parts.adapter, criterion(self.spec.kind), config.steps
        self.pretrains = self.spec.kind.classes
        self.tags = replace(self.tags, uses_classes=self.pretrains)
        names = (*self.model.choose(config.adapt), *(() if self.pretrains else HEAD))
        self.adapted = tuple(name for name in names if name not in matching(names, parts.frozen))
        if not self.adapted and not self.pretrains:
            raise ConfigError(
                "Every value that fine-tuning would move is frozen.", where="train.freeze", remedy="freeze less"
            )

    def init(self, key: Key) -> Params:
        """Return the network's values with its head, in classification the classifier of all training classes.

        Raises:
            ConfigError: The adapter has values of its own, which nothing would train.
        """
        features, bound = self.model.features, self.model.features**-0.5
        outputs, names = (self.spec.classes, CLASSIFIER) if self.pretrains else (self.spec.outputs, HEAD)
        shapes = dict(zip(names, ((outputs, features), (outputs,)), strict=True))
        head = {name: bound * (2 * uniform(fold_in(key, name), shape) - 1) for name, shape in shapes.items()}
        values = super().init(key) | head
        if own := self.adapter.init(self.start(values), fold_in(key, "adapters")):
            raise ConfigError(
                f"Fine-tuning trains without the adapter, so the adapter's values would stay as they begin: {min(own)}"
                f"{f' and {len(own) - 1} more' if len(own) > 1 else ''}.",
                where="adapters",
                remedy="choose an adapter without values of its own, such as sgd, or adam with adapters.adam.carry=false",
            )
        return values

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the loss of the network on support and query set together, without adaptation."""
        x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
        y = torch.as_tensor(task.classes)[y] if self.pretrains else y
        features, state = self.model.observe(values, x, Pass(key, 0, "support"))
        prediction = F.linear(features.flatten(1), *(values[n] for n in (CLASSIFIER if self.pretrains else HEAD)))
        return self.criterion(prediction, y), Aux({"score": score(self.spec.kind, prediction, y).detach()}, state)

    def start(self, values: Params) -> Params:
        """Return the parameters with which the fine-tuning of a task begins; in classification with a head of zeros."""
        start = {name: values[name] for name in self.adapted}
        if self.pretrains:
            weight = values[CLASSIFIER[0]]
            outputs = self.spec.outputs
            start |= {"head.weight": weight.new_zeros(outputs, weight.shape[1]), "head.bias": weight.new_zeros(outputs)}
        return start

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the weights after `steps` updates of the adapter on the support set."""

        def objective(values: Params, step: int) -> tuple[Tensor, Params]:
            draws = range(self.model.draws(key))
            outputs = [self.output(values, support.x, Pass(key, step, "support", draw)) for draw in draws]
            return sum_of(self.criterion(output, support.y) for output in outputs) / len(outputs), {}

        steps = self.config.steps if steps is None else steps
        adjoint = Adjoint("first-order")
        fast, _ = descend(objective, values, self.start(values), self.adapter, steps, adjoint=adjoint)
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support"))

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the fine-tuned network's output `[n, outputs]` for `x` `[n, *x_shape]`."""
        return self.output(values | fast, x, Pass(key, self.config.steps, "query"))

    def output(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        """Return the output `[n, outputs]` of the network with the head of a task."""
        return F.linear(self.model(values, x, at).flatten(1), *(values[name] for name in HEAD))
