"""ANIL: adapt the linear head alone, on features that the body computes once per task.

Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
ICLR 2020 (arXiv 1909.09157).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metaforge.authoring import (
    Aux,
    Examples,
    InnerLoopLearner,
    InnerLoopOptions,
    Key,
    Model,
    Params,
    Parts,
    Pass,
    Task,
    add_params,
    advance_state,
    draws_noise,
    hookimpl,
)


class ANILOptions(InnerLoopOptions):
    """Options of ANIL."""

    adapt: Literal["head"] = Field("head", description="parameters that the inner loop adapts")


class HeadLearner(InnerLoopLearner):
    """MAML on the head alone, whatever network computes the features."""

    Config = ANILOptions

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the query loss with the adapted head."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)


class ANIL(HeadLearner):
    """Learns features, and the initial head from which a few gradient steps on the head alone solve a new task.

    The presets `anil-scratch`, `anil-frozen`, `anil-pretrained` and `anil-pretrained-frozen` are four ways to train it.
    In first order (`learner.adjoint=first-order`) the gradient of the body is that of the query loss with the adapted
    head as a constant; only in second order does it take into account how features change the head.

    Without its head (NIL), a trained RUN is evaluated by `--learner matching --init-from RUN --steps 0`, with
    `train.init_patterns=["model.0.* -> model.*"]`, `learner.scale=1`, and the backbone and `learner.norm`
    of the run.

    Where a regularizer acts on the layers of the network, or dropout in it draws other noise in each inner step,
    features are not the same in each step. They are then computed in each step, as by `maml` with `learner.adapt=head`.

    Departures from the paper:
    - Those of `maml`: the inner rate in classification is for a mean over the examples, the head has the initial values
      of `nn.Linear` instead of N(0, 1), batch norm has a scale γ (`backbone.affine=shift` gives theirs), the backbones
      differ, and the suggested training is shorter.
    - Inner loop. The paper takes the settings of MAML: for 5 ways on Omniglot 1 step in training and 3 in evaluation,
      whose rate for a mean over the examples is 2.0. Suggested are 5 and 10 steps of rate 1.0. `learner.steps=1`,
      `learner.test_steps=3` and `adapters.sgd.lr=2.0` give those of MAML.
    """

    reference: ClassVar[str] = "Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4"
    config: ANILOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 5, "test_steps": 10},
            "adapters": {"sgd": {"lr": 1.0}},
            "train": {"queries": 5, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "learner": {"steps": 5, "test_steps": 10},
            "adapters": {"sgd": {"lr": 1.0}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "learner": {"steps": 5, "test_steps": 10},
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def __init__(self, config: ANILOptions, parts: Parts) -> None:
        super().__init__(config, parts)
        assert parts.backbone is not None, "the tags name a backbone among the needs"
        spec, modules = parts.spec, dict(self.model.module.named_modules())
        acting = any(one.taps(*module) for one in parts.regularizers.values() for module in modules.items())
        # As in the whole network, the values of the body are named `model.0.*`, and those of the head `model.2.*`.
        # fmt: off
        self.body = Model(parts.backbone, norm=config.norm, steps=config.steps, x_shape=spec.x_shape, prefix="model.0",
                          frozen=parts.frozen)
        # fmt: on
        self.head: HeadLearner | None = None
        if not acting and not draws_noise(parts.backbone, spec.x_shape):
            spec = replace(spec, x_shape=(self.body.features,))
            self.head = HeadLearner(config, parts._replace(spec=spec, backbone=nn.Identity, regularizers={}))
            self.head.terms = self.terms

    @hookimpl
    def metaforge_run_start(self) -> None:
        """Print no note on running averages: the inner loop changes no layer before them, so they suit its features."""

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return L_Q(b, h_s), where h_{k+1} = h_k − α ∇_h L_S(b, h_k); its gradient reaches the body b by h_s too."""
        if self.head is None:
            return super().loss(values, task, key)
        support, state = self.body.observe(values, task.support.x, Pass(key, 0, "support"))
        with torch.no_grad():
            state = self.repeated(values, task.support.x, key, state)
        current = values | advance_state(values, state)
        current |= self.body.statistics(current, task.support.x, Pass(key, self.config.steps, "support"))
        query, change = self.body.observe(current, task.query.x, Pass(key, self.config.steps, "query"))
        # fmt: off
        loss, aux = self.head.loss(values, task._replace(support=Examples(support.flatten(1), task.support.y),
                                                         query=Examples(query.flatten(1), task.query.y)), key)
        # fmt: on
        return loss, aux._replace(state=add_params(aux.state, add_params(state, change)))

    def repeated(self, values: Params, x: Tensor, key: Key, state: Params) -> Params:
        """Return the changes of running statistics by a support pass per inner step, of which `state` is the first."""
        if not self.config.steps:
            return {}
        for step in range(1, self.config.steps if state else 0):
            current = values | advance_state(values, state)
            state = add_params(state, self.body.observe(current, x, Pass(key, step, "support"))[1])
        return state

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted head."""
        if self.head is None:
            return super().adapt(values, support, steps=steps, key=key)
        at = Pass(key, 0, "support")
        features = self.body(values, support.x, at).flatten(1)
        fast = self.head.adapt(values, Examples(features, support.y), steps=steps, key=key)
        return fast | self.body.statistics(values, support.x, at)
