"""MetaOptNet: a support vector machine on features as the head of each task, differentiated through its solution.

Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019 (arXiv 1904.03758).
Details follow the authors' code, kjunelee/MetaOptNet.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

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
    cross_entropy,
    one_hot,
    score,
)

# How far a Newton step goes towards the nearest bound, and the factor by which it lowers the complementarity.
BOUND, CENTRE = 0.99, 0.1


class MetaOptSVMOptions(Options):
    """Options of MetaOptNet."""

    cost: float = Field(0.1, gt=0, le=1e4, description="price C of a support example on the wrong side of its margin")
    ridge: float = Field(
        1.0, gt=0, le=1e4, description="what is added to the diagonal of the matrix of the dual problem"
    )
    iterations: int = Field(25, ge=1, le=200, description="Newton steps of the interior-point method")
    scale: float = Field(1.0, gt=0, description="initial factor of the logits, which is meta-learned")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class MetaOptSVM(ModelLearner):
    """Trains a multi-class support vector machine (Crammer and Singer) on the features of each support set.

    The dual problem is solved in float64 by an interior-point method, which finds the coefficients that are at their
    bounds. Given these, all others solve a linear system, which gives the solution to rounding errors, and its exact
    derivative. The metric `violation` is how far the solution is from the conditions of an optimum (KKT).

    Departures from the paper:
    - Matrix. As in the authors' code, 1 is added to the diagonal of the matrix of the dual problem. A small
      `learner.ridge` gives nearly the paper's.
    - Network. The authors' is a ResNet-12 with DropBlock; suggested are four blocks of 64 filters. No option gives
      theirs.
    - Training. The authors train with 15 shots and 6 queries per class, in 60 epochs of gradient descent with momentum,
      with label smoothing. They have no results for Omniglot. Suggested are 20 ways with 1 shot and 5 queries, and
      1,500 steps of Adam with learning rate 3e-3, lowered by a cosine.
    - Initial scale. The authors' factor of the logits is 1 at first; suggested is 10, because with one example per
      class the scores are so small that a learner spends most of a short training on the factor. `learner.scale=1`
      gives theirs.
    """

    Config = MetaOptSVMOptions
    reference: ClassVar[str] = "Lee, Maji, Ravichandran, Soatto 2019, arXiv 1904.03758, section 3"
    tags: Tags = Tags(needs=frozenset({"backbone"}), fixed_ways=False, varied_shots=True)
    config: MetaOptSVMOptions
    defaults: ClassVar = {
        "classification": {
            "learner": {"scale": 10.0},
            "train": {"ways": 20, "queries": 5, "tasks": 1, "steps": 1500, "lr": 3e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: MetaOptSVMOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)

    def init(self, key: Key) -> Params:
        """Return the network's values, and the factor of the logits."""
        return super().init(key) | {"scale": torch.tensor(self.config.scale)}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the weights of the classes W `[features, ways]`."""
        at = Pass(key, 0, "support")
        weights = self.solve(self.model(values, support.x, at).flatten(1), support.y)[0]
        return {"weights": weights} | self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logits, a factor times X W `[n, ways]`."""
        features = self.model(values | fast, x, Pass(key, 0, "query")).flatten(1)
        return values["scale"] * (features.to(fast["weights"]) @ fast["weights"])

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy of the query set, differentiated through the solution W (equation 12)."""
        support, query, state = self.model.observe_task(values, task, key)
        weights, violation = self.solve(support, task.support.y)
        logits = values["scale"] * (query.to(weights) @ weights)
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy, "violation": violation}, state)

    def solve(self, features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return W = Xᵀ α `[features, ways]`, and by how much α violates the conditions of an optimum.

        α `[n, ways]` minimises ½ Σ_k ‖Σ_i α_ik x_i‖² − Σ_i α_i,y_i, where Σ_k α_ik = 0 for each example i, α_ik ≤ C for
        its own class and α_ik ≤ 0 for the others (equation 10).
        """
        x = features.double()
        own = one_hot(y, self.spec.outputs, x.dtype)
        (n, ways), eye = own.shape, torch.eye(self.spec.outputs).to(x)
        gram = x @ x.T + self.config.ridge * torch.eye(n).to(x)
        quadratic, rows = torch.kron(gram, eye), torch.kron(torch.eye(n).to(x), x.new_ones(1, ways))
        linear, upper = own.flatten(), self.config.cost * own.flatten()
        free = interior_point(quadratic.detach(), linear, rows, upper, self.config.iterations)
        alpha, violation = at_bounds(quadratic, linear, rows, upper, free)
        return (x.T @ alpha.reshape(n, ways)).to(torch.promote_types(features.dtype, torch.float32)), violation


def interior_point(q: Tensor, linear: Tensor, rows: Tensor, upper: Tensor, iterations: int) -> Tensor:
    """Return which entries of the solution of a quadratic program are below their bound, 1 or 0 `[size]`.

    Args:
        q: Positive definite matrix Q `[size, size]` of the program: minimise ½ aᵀQa − eᵀa with A a = 0 and a ≤ u.
        linear: The vector e `[size]`.
        rows: The matrix A `[equations, size]`.
        upper: The bounds u `[size]`.
        iterations: Number of Newton steps, from a point that satisfies neither the equations nor the bounds.
    """
    a, nu = torch.zeros_like(linear), rows.new_zeros(len(rows))
    slack, z = torch.full_like(linear, 0.1), torch.ones_like(linear)
    for _ in range(iterations):
        dual, primal, target = q @ a - linear + z + nu @ rows, a + slack - upper, CENTRE * (slack * z).mean()
        top = torch.cat([q + (z / slack).diag(), rows.T], 1)
        bottom = torch.cat([rows, rows.new_zeros(len(rows), len(rows))], 1)
        side = torch.cat([z - dual - target / slack - z / slack * primal, -(rows @ a)])
        step, nu_step = torch.linalg.solve(torch.cat([top, bottom]), side).tensor_split([len(a)])
        slack_step = -primal - step
        z_step = target / slack - z - z / slack * slack_step
        length = BOUND * torch.minimum(distance(slack, slack_step), distance(z, z_step))
        a, nu = a + length * step, nu + length * nu_step
        slack, z = slack + length * slack_step, z + length * z_step
    # Without a free entry an equation could not hold, as it cannot be where the steps were too few.
    largest = one_hot((rows * (slack / z)).argmax(1), len(a), q.dtype).sum(0)
    return torch.maximum((slack > z).to(q.dtype), largest)


def distance(positive: Tensor, step: Tensor) -> Tensor:
    """Return how many steps, at most 1 / `BOUND`, lead from a positive vector to the first zero."""
    return torch.where(step < 0, -positive / step, 1 / BOUND).amin().clamp_max(1 / BOUND)


def at_bounds(q: Tensor, linear: Tensor, rows: Tensor, upper: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return the solution `[size]` whose other entries than the `free` ones are at their bounds, and its violation."""
    top = torch.cat([free.unsqueeze(-1) * q + (1 - free).diag(), free.unsqueeze(-1) * rows.T], 1)
    matrix = torch.cat([top, torch.cat([rows, rows.new_zeros(len(rows), len(rows))], 1)])
    side = torch.cat([free * linear + (1 - free) * upper, rows.new_zeros(len(rows))])
    a, nu = torch.linalg.solve(matrix, side).tensor_split([len(linear)])
    multipliers = (linear - q @ a - nu @ rows).detach()
    below = torch.where(free > 0, (a.detach() - upper).clamp_min(0), (-multipliers).clamp_min(0))
    return a, below.amax()
