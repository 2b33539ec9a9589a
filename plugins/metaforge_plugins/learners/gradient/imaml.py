"""iMAML: learn an initialisation to which each task's weights are pulled, by implicit differentiation.

Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019 (arXiv 1909.04630).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.authoring import Aux, Examples, InnerLoopLearner, InnerLoopOptions, Key, Params, Parts, Tags, Task


class IMAMLOptions(InnerLoopOptions):
    """Options of iMAML."""

    steps: int = Field(16, ge=1, le=1000, description="inner steps in training")
    test_steps: int = Field(16, ge=0, le=1000, description="inner steps in evaluation")
    adjoint: Literal["implicit"] = Field("implicit", description="how the inner loop is differentiated")
    proximal: float = Field(
        2.0, gt=0, description="factor λ of λ/2 ‖φ - θ‖², which pulls the adapted parameters φ to their start θ"
    )
    test_proximal: float | None = Field(None, ge=0, description="factor λ in evaluation, by default that of training")
    solver: Literal["cg", "cr", "neumann"] = Field(
        "cr",
        description="how the linear system is solved: conjugate gradients, conjugate residuals (which also suit a"
        " Hessian with negative eigenvalues) or Neumann series",
    )
    solver_steps: int = Field(5, ge=1, le=1000, description="Hessian-vector products of the solver")
    solver_residual: bool = Field(
        False,
        description="measure in training how far from exact the solver is; it costs one more solution of the system",
    )


class IMAML(InnerLoopLearner):
    """Learns an initialisation by the derivative of the inner problem's solution, without a graph of the inner steps.

    Departures from the paper:
    - Inner loop. The authors' code takes all steps on L_S alone, and then one step towards θ. Here, as in the paper,
      each step is on L_S with the proximal term. No option gives theirs.
    - Linear system. In the authors' code its matrix is (1 + δ) I + H / (λ + 10) with a damping δ of 1, which is far
      from the paper's I + H/λ, used here. No option gives theirs. The paper solves the system by 5 steps of conjugate
      gradients; here the default are 5 steps of conjugate residuals, and in classification 3 are suggested. Their error
      does not grow where H has eigenvalues below −λ, as it has early in a training. `learner.solver=cg` and
      `learner.solver_steps=5` give the paper's.
    - Inner steps. The paper takes 16 for 5 ways and 25 for 20 ways, and λ is 2. In classification 6 steps in training
      and 30 in evaluation are suggested, with λ = 0.5. `learner.steps=16`, `learner.test_steps=16` and
      `learner.proximal=2` give the paper's.
    - Hessian-free variant. `--adapter hessian-free` gives its Newton steps, each of 5 steps of conjugate gradients and
      a line search. See the departures of that adapter.
    - Evaluation. In the authors' code λ is 0 in evaluation, as is suggested in classification.
      `learner.test_proximal=2` gives that of the training.
    - Batch norm. The authors adapt its parameters too. `learner.adapt=all` gives theirs.
    - Initial values. The authors draw the weights after Glorot and Bengio with a gain of 1.73, and the biases uniformly
      in [0, 0.05]. No option gives theirs; see the departures of the backbone `conv4`.
    - Training on Omniglot. The authors take at least 20,000 outer steps by Adam with learning rate 1e-3 and ε 1e-3 on
      32 tasks, with as many queries as shots. The suggested settings are shorter: see `train.steps`, `train.lr`,
      `train.tasks`, `train.queries` and `schedule.name=constant`.
    - Images of Omniglot. The authors split the characters at random into 1200 and 423, do not invert the images, and
      draw one rotation per class and task, in training and in evaluation. `dataset.rotations=task` and
      `dataset.invert=false` give that; `dataset.split=random` has 1100, 100 and 423 characters.
    """

    Config = IMAMLOptions
    reference: ClassVar[str] = "Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630, algorithms 1 and 2"
    tags: Tags = replace(InnerLoopLearner.tags, exact_meta_gradient=False)
    config: IMAMLOptions
    evaluated: IMAML | None
    defaults: ClassVar = {
        "classification": {
            "learner": {"steps": 6, "test_steps": 30, "proximal": 0.5, "test_proximal": 0.0, "solver_steps": 3},
            "backbone": {"variant": "pool-32"},
            "adapters": {"sgd": {"lr": 0.1}},
            "train": {"queries": 3, "tasks": 8, "steps": 2000, "lr": 2e-3},
            "schedule": {"name": "cosine"},
        },
        "multi-label": {
            "adapters": {"sgd": {"lr": 0.1}},
            "train": {"steps": 5000, "tasks": 16},
        },
        "regression": {
            "adapters": {"sgd": {"lr": 0.01}},
            "train": {"steps": 10000, "tasks": 25},
        },
    }

    def __init__(self, config: IMAMLOptions, parts: Parts) -> None:
        if config.adapt == "head":
            # Only this inner problem is convex for every task, so that a number of steps leads to its solution.
            self.tags = replace(self.tags, exact_meta_gradient=True, converges_at=60)
        super().__init__(config, parts)
        factor, self.evaluated = config.test_proximal, None
        if factor is not None:
            others = {"proximal": factor, "test_proximal": None}
            self.evaluated = IMAML(config.model_copy(update=others), parts)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return L_Q(φ*), where φ* minimises L_S(φ) + λ/2 ‖φ − θ‖²; its gradient is (I + H_S(φ*)/λ)⁻¹ ∇L_Q(φ*)."""
        fast, state = self.descend(values, task.support, self.config.steps, key)
        return self.query_loss(values, fast, task, key, state)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted parameters; in evaluation with λ = `test_proximal`."""
        if self.evaluated is not None and self._noise(key) is None:
            return self.evaluated.adapt(values, support, steps=steps, key=key)
        return super().adapt(values, support, steps=steps, key=key)
