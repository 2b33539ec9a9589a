"""Two baselines that need no training: the nearest support example, and an answer that ignores the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from metaforge.authoring.losses import score
from metaforge.authoring.protocols import Kind, Task


def nearest_neighbour(kind: Kind, task: Task) -> Tensor:
    """Return the score of one task if each query gets the target of the nearest support example.

    The distance is Euclidean on raw inputs. If several support examples are equally near, the first is used.
    """
    support, query = (part.x.flatten(1).double() for part in task)
    distances = torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
    answers = task.support.y[distances.argmin(-1)]
    if kind == "classification":
        return (answers == task.query.y).double().mean()
    return score(kind, answers.double(), task.query.y.double())


def chance_level(kind: Kind, task: Task, ways: int) -> Tensor:
    """Return the score of one task without looking at the inputs.

    In classification this is `1 / ways`; in regression, the error of predicting the mean of the support targets.
    """
    if kind == "classification":
        return torch.tensor(1 / ways, dtype=torch.float64)
    return score(kind, task.support.y.double().mean(0), task.query.y.double())
