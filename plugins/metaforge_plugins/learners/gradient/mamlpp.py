"""MAML++: MAML with the query losses after all inner steps, and with learning rates and batch norm of each step.

Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019 (arXiv 1810.09502).
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import (
    SHARE,
    Adjoint,
    Aux,
    Examples,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    NormPolicy,
    Params,
    Parts,
    Pass,
    Task,
    add_params,
    advance_state,
    blank_examples,
    descend,
    fold_in,
    iterates,
    prefixed,
    select,
    sum_of,
    training_progress,
)

# The weights of all steps but the last fall to this part of their start.
FLOOR = 0.03


class MAMLPPOptions(InnerLoopOptions):
    """Options of MAML++."""

    steps: int = Field(3, ge=0, le=1000, description="inner steps in training (S in the code)")
    norm: NormPolicy = Field(
        "per-step", description="which statistics batch norm uses for queries; per-step keeps averages of each step"
    )
    adjoint: Literal["unroll", "recompute", "first-order"] = Field(
        "unroll", description="how the inner loop is differentiated after the first-order part of the training"
    )
    multi_step: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of the training, from its start, in which the loss is a weighted sum of the query losses"
        " after all inner steps; in the rest of it the loss is the last of these alone",
    )
    first_order: float = Field(
        0.0, ge=0, le=1, description="share of the training, from its start, in which the meta-gradient is first order"
    )
    per_step_norm: bool = Field(
        True,
        description="whether norm layers have a scale and a shift for each inner step; queries have those of the step"
        " before them, and further steps those of the last",
    )


class MAMLPlusPlus(InnerLoopLearner):
    """Learns an initialisation as MAML does, with query losses, learning rates and batch norm of each inner step.

    Every part can be switched off: the losses of all steps by `learner.multi_step=0`, the rates by `--adapter sgd`,
    the scale and shift of each step by `learner.per_step_norm=false`, the statistics of each step by
    `learner.norm=transductive`, first order by `learner.first_order=0`, and the falling outer rate by
    `schedule.name=constant`. Without any of them it is `maml`, but for the suggested numbers of steps and backbone, and
    for the rate of `sgd`, for which `mamlpp` suggests none: see `maml`.

    Departures from the paper:
    - Inner steps. The authors take 5 steps on images; suggested are 3. `learner.steps=5`,
      `learner.test_steps=5` and `adapters.lslr.steps=5` give theirs.
    - First order. The paper proposes to begin the training in first order. In the configurations of the authors' code
      all of it is in second order, as by default here. `learner.first_order=0.5` makes the first half first-order.
    - Losses of all steps. In the authors' code their weights change after each epoch, and only the last loss is left
      after 10 of 100 epochs on Omniglot, and 15 on miniImageNet. Here the weights change in every outer step, and only
      the last loss is left after a tenth. `learner.multi_step=0.15` gives the other share.
    - Statistics of batch norm. The paper proposes to use the running averages of each step in evaluation. The authors'
      code collects them and normalises every batch by its own statistics, as here. No option changes that.
    - Scale and shift of each step. In the authors' code batch norm alone has them; here every other norm layer with a
      scale and a shift has them too. No option changes that.
    - Network. The authors use leaky ReLU and 64 filters with pooling on Omniglot; suggested are ReLU and 32 filters.
      `backbone.variant=pool` gives 64, and no option the leaky ReLU. See also the departures of the backbone `conv4`.
    - Training on Omniglot. The authors take 50,000 outer steps, with one query per class and an outer rate that falls
      from 1e-3 to 1e-5. Suggested are 2,000, with 5 queries and from 2e-3 to 2e-5. `train.steps=50000`,
      `train.queries=1` and `train.lr=1e-3` give theirs.
    - Evaluation. The authors combine the five checkpoints that are best in validation. Here an evaluation is of one
      checkpoint. No option changes that.
    - Images of Omniglot. The authors split the characters at random into 1150, 50 and 423, resize by Lanczos, and do
      not invert the images. `dataset.split=random` has 1100, 100 and 423 characters; `dataset.resample=lanczos` and
      `dataset.invert=false` give the rest.
    - Clipping. On miniImageNet the authors limit the entries of the meta-gradient to ±10; here they have no limit by
      default. `train.clip_value=10` gives theirs.
    - Regression. The paper has none. The suggested settings are those of `maml`, with 3 inner steps and a limit of 5
      on the norm of the meta-gradient, because learned rates can make a task diverge.
    """

    Config = MAMLPPOptions
    reference: ClassVar[str] = "Antoniou, Edwards, Storkey 2019, arXiv 1810.09502, section 4"
    config: MAMLPPOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 3, "test_steps": 3},
            "adapters": {"lslr": {"steps": 3, "lr": 0.1}},
            "backbone": {"variant": "pool-32"},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine", "floor": 0.01},
        },
        "multi-label": {
            "learner": {"steps": 3, "test_steps": 3},
            "adapters": {"lslr": {"steps": 3, "lr": 0.1}},
            "train": {"steps": 5000, "tasks": 16},
            "schedule": {"name": "cosine", "floor": 0.01},
        },
        "regression": {
            "learner": {"steps": 3, "test_steps": 3},
            "adapters": {"lslr": {"steps": 3, "lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25, "clip": 5.0},
            "schedule": {"name": "cosine", "floor": 0.01},
        },
    }

    def __init__(self, config: MAMLPPOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        trained = {*self.model.body, *self.model.head}
        self.per_step = sorted(self.model.norm_names & trained) if config.per_step_norm else []
        # Whether the loss changes in training, and whether that of the present phase has the losses of all steps.
        self.anneals = self.every_step = config.multi_step > 0 and config.steps > 1
        self.phases = {(first, every): self._phase(first, every) for first in (False, True) for every in (False, True)}

    def _phase(self, first_order: bool, every_step: bool) -> MAMLPlusPlus:
        """Return the learner of a phase, which differs from this one in the adjoint and the loss alone."""
        if (first_order, every_step) == (False, self.every_step):
            return self
        phase = copy(self)
        phase.adjoint, phase.every_step = Adjoint("first-order") if first_order else self.adjoint, every_step
        return phase

    def during(self, share: float) -> MAMLPlusPlus:
        """Return the learner of a phase: in first order or not, with the losses of all steps or of the last alone."""
        return self.phases[share < self.config.first_order, self.anneals and share < self.config.multi_step]

    def init(self, key: Key) -> Params:
        """Return the values as MAML's, but scale and shift of norm layers with a leading axis of inner steps."""
        values = super().init(key)
        rows = max(self.config.steps, 1)
        values |= {name: values[name].expand(rows, *values[name].shape).clone() for name in self.per_step}
        # Again, because an adapter makes what it meta-learns in the shapes of what it adapts.
        values = {name: value for name, value in values.items() if not name.startswith("adapters.")}
        start = self.start(values, blank_examples(self.spec), None)
        values |= prefixed("adapters", self.adapter.init(start, fold_in(key, "adapters")))
        return values | (training_progress() if self.anneals else {})

    def norm_of(self, values: Params, step: int) -> Params:
        """Return scale and shift of the norm layers in a pass of step k, from 0; the last ones for further steps."""
        row = min(step, max(self.config.steps, 1) - 1)
        return {name: values[name][row] for name in self.per_step}

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on the support set with the norm layers of the step."""
        return super().support_loss(values | self.norm_of(values, step), batch, step, key)

    def for_queries(self, values: Params, fast: Params, support: Examples, step: int, key: Key | None) -> Params:
        """Return θ_k for queries: with scale and shift of the last inner step, as in the authors' code."""
        fast = fast | self.norm_of(values | fast, max(step - 1, 0))
        return fast | self.model.statistics(values | fast, support.x, Pass(key, step, "support"))

    def descend(self, values: Params, support: Examples, steps: int, key: Key | None) -> tuple[Params, Params]:
        """Return θ_k after k = `steps` inner steps, as `for_queries` returns it, and the changes of state entries."""
        start, inputs = self.start(values, support, key), support if key is None else (*support, key)
        how, factor = self.adjoint, self.config.proximal
        fast, state = descend(self.objective, values, start, self.adapter, steps, *inputs, adjoint=how, proximal=factor)
        return self.for_queries(values, fast, support, steps, key), state

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return θ_k; scale and shift of its norm layers for queries are the entries `query.<name>`."""
        fast = super().adapt(values, support, steps=steps, key=key)
        norm = {name: fast.pop(name) for name in self.per_step}
        return fast | prefixed("query", norm)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]` for `x` `[n, *x_shape]`."""
        return super().predict(values, fast | select(fast, "query"), x, key=key)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss of θ_S, or the sum of those of θ_1 … θ_S with their weights (equation 3)."""
        support, query, steps = *task[:2], self.config.steps
        start, how, factor = self.start(values, support, key), self.adjoint, self.config.proximal
        path = iterates(self.objective, values, start, self.adapter, steps, *support, key, adjoint=how, proximal=factor)
        state, losses = path[-1][1], []
        for step in range(1, steps) if self.every_step else ():
            fast = self.for_queries(values, path[step][0], support, step, key)
            current = values | advance_state(values, state) | fast
            prediction, change = self.model.observe(current, query.x, Pass(key, step, "query"))
            losses.append(self.criterion(prediction, query.y))
            state = add_params(state, change)
        fast = self.for_queries(values, path[-1][0], support, steps, key)
        loss, aux = self.query_loss(values, fast, task, key, state)
        if not self.every_step:
            return loss, aux
        weights = step_weights(steps, values[SHARE] / self.config.multi_step)
        return sum_of(weight * each for weight, each in zip(weights, [*losses, loss], strict=True)), aux


def step_weights(steps: int, share: Tensor) -> Tensor:
    """Return the weights w_1 … w_S `[steps]` of the losses after each inner step, whose sum is 1.

    Args:
        steps: Number of inner steps S, at least 1.
        share: The fraction that is done of the part of the training with the losses of all steps. All weights start at
            1/S; all but the last fall linearly to 0.03/S, and to 0 at the end of that part.
    """
    others = ((1 - share) / steps).clamp_min(FLOOR / steps)
    others = torch.where(share < 1, others, torch.zeros_like(others)).expand(steps - 1)
    return torch.cat([others, (1 - others.sum()).reshape(1)])
