"""Fine-tuning: train one network on all tasks jointly, and in a task continue with gradient steps on its support set.

The pretrained network of Finn, Abbeel, Levine 2017 (arXiv 1703.03400, section 5.1), with which they compare MAML; in
classification the fine-tuning baseline of Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Adjoint,
    BatchNormPolicy,
    Examples,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    PretrainingLearner,
    Tags,
    descend,
    fold_in,
    matching,
    sum_of,
)
from metaforge.errors import ConfigError

HEAD = ("head.weight", "head.bias")


class FineTuneOptions(Options):
    """Options of fine-tuning."""

    steps: int = Field(10, ge=0, le=10_000, description="gradient steps in a task")
    adapt: Literal["all", "weights"] = Field(
        "all", description="parameters of the body that are fine-tuned: all, or all but those of norm layers"
    )
    norm: BatchNormPolicy = Field("support", description="which statistics batch norm uses for queries")


class FineTune(PretrainingLearner):
    """Trains one network on all tasks jointly; in a task, the run's adapter moves all its weights.

    In classification the training is ordinary pretraining with a linear classifier of all training classes, and its
    score is the accuracy among them. A task begins with a new head of zeros, which alone moves in the first step. In
    other kinds of tasks the head is trained jointly too (the multi-task baseline). With `train.steps=0` nothing is
    trained, so that each task begins with random weights.

    Departures from the paper:
    - Inner rate. The authors of MAML tune the step size automatically. Here it is that of the adapter, suggested are
      0.01 for sinusoids and 0.1 in classification; `adapters.sgd.lr` changes it.
    - Training on sinusoids. The authors of MAML do not describe it. Suggested are batches of 25 tasks, support and
      query set together, and 10,000 outer steps. `train.tasks` and `train.steps` change that.
    - Initial head. In classification it is zero, so that no class is preferred before the first step, and other labels
      of the support set permute the predictions. No option gives random values.
    - Batches of pretraining. In classification support and query set of a task are one batch, so that each class of it
      has the same number of images; suggested are 60 classes with 2 images each. No option gives images drawn
      regardless of their classes.
    - Batch norm. The authors of MAML use the statistics of all queries together. Here they are those of the support
      set; with running averages of the pretraining the steps must be much smaller, and scores are lower.
      `learner.norm=transductive` gives theirs, `learner.norm=running` running averages.
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
            "train": {"ways": 60, "queries": 1, "tasks": 1, "steps": 3000, "lr": 5e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "stride-flat"},
        },
        "multi-label": {"adapters": {"sgd": {"lr": 0.1}}, "train": {"steps": 5000, "tasks": 16}},
        "regression": {"adapters": {"sgd": {"lr": 0.01}}, "train": {"steps": 10000, "tasks": 25}},
    }

    def __init__(self, config: FineTuneOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        assert parts.adapter is not None, "the learner's tags do not name an adapter among its needs"
        self.adapter, self.steps = parts.adapter, config.steps
        names = (*self.model.choose(config.adapt), *HEAD)
        # The head of a pretrained network is a task's own, so it cannot be frozen.
        frozen = matching(names[:-2] if self.pretrains else names, parts.frozen)
        self.adapted = tuple(name for name in names if name not in frozen)
        if not self.adapted:
            raise ConfigError("All that fine-tuning moves is frozen.", where="train.freeze", remedy="freeze less")

    def init(self, key: Key) -> Params:
        """Return the network's values and those of its head, in classification of the classifier of all classes.

        Raises:
            ConfigError: The adapter has values of its own, which nothing would train.
        """
        values = super().init(key)
        if own := self.adapter.init(self.start(values), fold_in(key, "adapters")):
            raise ConfigError(
                f"Fine-tuning trains without the adapter, whose own values would never change, such as {min(own)}.",
                where="adapters",
                remedy="choose one without such values, such as sgd, or adam with adapters.adam.carry=false",
            )
        return values

    def start(self, values: Params) -> Params:
        """Return the parameters with which the fine-tuning of a task begins; in classification with a head of zeros."""
        if self.pretrains:
            zeros = (values[name].new_zeros(self.spec.outputs, *values[name].shape[1:]) for name in self.trained)
            values = values | dict(zip(HEAD, zeros, strict=True))
        return {name: values[name] for name in self.adapted}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the weights after `steps` updates of the adapter on the support set."""
        steps = self.config.steps if steps is None else steps

        def objective(values: Params, step: int) -> tuple[Tensor, Params]:
            passes = [Pass(key, step, "support", draw) for draw in range(self.model.draws(key))]
            losses = [self.criterion(self.output(values, support.x, at), support.y) for at in passes]
            return sum_of(losses) / len(losses), {}

        start, adjoint = self.start(values), Adjoint("first-order")
        fast, _ = descend(objective, values, start, self.adapter, steps, adjoint=adjoint)
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support"))

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the fine-tuned network's output `[n, outputs]` for `x` `[n, *x_shape]`."""
        return self.output(values | fast, x, Pass(key, self.config.steps, "query"))

    def output(self, values: Params, x: Tensor, at: Pass) -> Tensor:
        """Return the output `[n, outputs]` of the network with the head of a task."""
        return F.linear(self.model(values, x, at).flatten(1), *(values[name] for name in HEAD))
