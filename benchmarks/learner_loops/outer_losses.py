"""MAML with the outer losses of TAML, and pretraining, whose outer loss is that of one network on one batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.initialisations import maml
from benchmarks.learner_loops.plain import Plain, adapted
from metaforge.authoring import Params, Task


def taml_entropy(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML with a reward for predictions that are uncertain before the inner loop and certain after it."""
    before = plain(values, task.query.x)
    after = plain(adapted(values, task, plain, plain.weights), task.query.x)
    change = entropy(after) - entropy(before)
    return plain.criterion(after, task.query.y) + plain.regularizers["taml-entropy"].weight * change


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of predicted class distributions."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1).mean()


def taml_inequality(values: Params, task: Task, plain: Plain) -> Tensor:
    """Return the query losses of MAML after and before the inner loop; `theil` combines those of all tasks."""
    return torch.stack([maml(values, task, plain), plain.loss(values, task.query)])


def theil(losses: Tensor, plain: Plain) -> Tensor:
    """Return the mean loss after the inner loop plus the weighted Theil index of the losses `[tasks, 2]` before it."""
    after, before = losses.unbind(1)
    shares = (before + 1e-8) / (before + 1e-8).mean()
    return after.mean() + plain.regularizers["taml-inequality"].weight * (shares * shares.log()).mean()


def pretraining(values: Params, task: Task, plain: Plain) -> Tensor:
    """Fine-tuning and Baseline: the loss of a linear classifier of all training classes on one batch."""
    x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
    logits = F.linear(plain(values, x).flatten(1), values["classifier.weight"], values["classifier.bias"])
    return F.cross_entropy(logits, torch.as_tensor(task.classes)[y])


def cosine_pretraining(values: Params, task: Task, plain: Plain) -> Tensor:
    """Baseline++: the loss of a cosine classifier of all training classes on one batch."""
    x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
    features = F.normalize(plain(values, x).flatten(1), dim=1, eps=1e-5)
    logits = values["scale"] * features @ F.normalize(values["classifier.weight"], dim=1, eps=1e-5).T
    return F.cross_entropy(logits, torch.as_tensor(task.classes)[y])
