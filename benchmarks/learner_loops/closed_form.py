"""Methods whose head of a task is the solution of a convex problem: ridge regression, a support vector machine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain
from metaforge.authoring import Params, Task

# torch has no solver of quadratic programs, so both sides use that of MetaForge, here for one task after another.
from metaforge_plugins.learners.closed_form.metaopt_svm import at_bounds, interior_point


def r2d2(values: Params, task: Task, plain: Plain) -> Tensor:
    """R2-D2: ridge regression, by a linear system of the size of the support set."""
    support, query = (torch.cat([x, x.new_ones(len(x), 1)], 1) for x in plain.of_task(values, task))
    n, labels = len(support), F.one_hot(task.support.y).to(support.dtype)
    matrix = support @ support.T + n * plain.options.ridge * torch.eye(n, dtype=support.dtype)
    weights = support.T @ torch.linalg.solve(matrix, labels)
    return F.cross_entropy(values["scale"] * (query @ weights) + values["offset"], task.query.y)


def metaopt_svm(values: Params, task: Task, plain: Plain) -> Tensor:
    """MetaOptNet: a multi-class support vector machine, whose dual problem is solved in float64."""
    support, query = plain.of_task(values, task)
    x, labels = support.double(), F.one_hot(task.support.y).double()
    n, ways = labels.shape
    eye = torch.eye(n, dtype=torch.float64)
    gram = x @ x.T + plain.options.ridge * eye
    quadratic, rows = torch.kron(gram, torch.eye(ways, dtype=torch.float64)), torch.kron(eye, x.new_ones(1, ways))
    linear, upper = labels.flatten(), plain.options.cost * labels.flatten()
    free = interior_point(quadratic.detach(), linear, rows, upper, plain.options.iterations)
    alpha = at_bounds(quadratic, linear, rows, upper, free)[0].view(n, ways)
    return F.cross_entropy(values["scale"] * (query @ (x.T @ alpha).to(query.dtype)), task.query.y)
