"""Metric methods: a query is compared with the support examples, or with the mean of each class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain, class_means, linear
from benchmarks.learner_loops.recurrent import lstm, lstm_gates
from metaforge.authoring import Key, Params, Task, fold_in, permutation


def protonet(values: Params, task: Task, plain: Plain) -> Tensor:
    """Prototypical networks: squared distances to the mean feature of each class."""
    support, query = plain.of_task(values, task)
    prototypes = class_means(support, task.support.y)
    return F.cross_entropy(-(query.unsqueeze(1) - prototypes).square().sum(-1), task.query.y)


def matching(values: Params, task: Task, plain: Plain) -> Tensor:
    """Matching networks: attention over the support examples by cosines."""
    support, query = plain.of_task(values, task)
    return attention_loss(support, F.one_hot(task.support.y), query, task.query.y, plain)


def matching_full_context(values: Params, task: Task, plain: Plain, order: Tensor) -> Tensor:
    """Matching networks whose features depend on the whole support set, which LSTMs read in a drawn order."""
    support, query = plain.of_task(values, task)
    support, labels = support[order], F.one_hot(task.support.y)[order]
    weights = []
    for name in ("forward", "backward"):
        bias = values[f"{name}.bias"]
        weights += [values[f"{name}.weight_ih"], values[f"{name}.weight_hh"], bias, torch.zeros_like(bias)]
    start = support.new_zeros(2, 1, support.shape[1])
    # The arguments after the weights: biases, layers, dropout, training, bidirectional, batch first.
    read = torch.lstm(support.unsqueeze(1), (start, start), weights, True, 1, 0.0, True, True, False)[0].squeeze(1)
    embedded = support + sum(read.chunk(2, -1))
    inputs = F.linear(query, values["reader.weight_ih"], values["reader.bias"])
    h, c, r = (torch.zeros_like(query) for _ in range(3))
    for _ in range(plain.options.reads):
        h, c = lstm(lstm_gates(inputs, values["reader.weight_hh"], h, r), c)
        h = h + query
        r = (h @ embedded.T).softmax(-1) @ embedded
    return attention_loss(embedded, labels, h, task.query.y, plain)


def support_order(key: Key, task: Task, plain: Plain) -> Tensor:
    """Return the random order in which the support set is read."""
    return permutation(fold_in(key, "order"), len(task.support.y))


def attention_loss(support: Tensor, labels: Tensor, query: Tensor, y: Tensor, plain: Plain) -> Tensor:
    """Return the mean of −log Σ_i a(x, x_i) y_i, where the weights a are a softmax of cosines."""
    cosines = F.normalize(query, dim=1, eps=1e-5) @ F.normalize(support, dim=1, eps=1e-5).T
    probabilities = (plain.options.scale * cosines).softmax(-1) @ labels.to(cosines.dtype)
    return F.nll_loss(probabilities.log(), y)


def siamese(values: Params, task: Task, plain: Plain) -> Tensor:
    """Siamese networks: whether two examples have the same class, for all pairs of a query and a support example."""
    support, query = (part.sigmoid() for part in plain.of_task(values, task))
    logits = (query.unsqueeze(1) - support).abs() @ values["compare.weight"] + values["compare.bias"]
    same = task.query.y.unsqueeze(1) == task.support.y
    each = F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
    return (each[same].mean() + each[~same].mean()) / 2


def relation(values: Params, task: Task, plain: Plain) -> Tensor:
    """Relation networks: a network of convolutions compares the maps of a query and of each class."""
    both = plain(values, torch.cat([task.support.x, task.query.x]))
    support, query = both[: len(task.support.y)], both[len(task.support.y) :]
    labels = F.one_hot(task.support.y).to(both.dtype)
    classes = torch.einsum("nw,nchv->wchv", labels, support)
    ways, n = len(classes), len(query)
    shape = (n, ways, *both.shape[1:])
    x = torch.cat([classes.expand(shape), query.unsqueeze(1).expand(shape)], 2).flatten(0, 1)
    for number in (0, 4):
        x = F.conv2d(x, values[f"relation.{number}.weight"], values[f"relation.{number}.bias"], padding=1)
        norm = values[f"relation.{number + 1}.weight"], values[f"relation.{number + 1}.bias"]
        x = F.max_pool2d(F.batch_norm(x, None, None, *norm, training=True).relu(), 2)
    scores = linear(values, "relation.11", linear(values, "relation.9", x.flatten(1)).relu()).sigmoid()
    return F.mse_loss(scores.view(n, ways), F.one_hot(task.query.y).to(scores.dtype))
