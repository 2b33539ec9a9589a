"""Methods in which networks generate the weights of a task, and no weight is optimised for it."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain, class_means, leaves, linear, mlp
from metaforge.authoring import Key, Params, Task, fold_in, permutation

PARTS = ("weight", "bias")


def eb_meta_networks(values: Params, task: Task, plain: Plain) -> Tensor:
    """Embedding-based Meta Networks: the weights of a class are the mean over its examples of a linear map."""
    support, query = plain.of_task(values, task)
    weights = class_means(linear(values, "u.0", support), task.support.y)
    return F.cross_entropy(F.linear(query, values["v.0.weight"]) @ weights.T, task.query.y)


def meta_networks(values: Params, task: Task, plain: Plain, chosen: Tensor) -> Tensor:
    """Meta Networks: networks read the gradients of the support examples and generate fast weights.

    The gradients are constants. Those of all examples come from one batched backward pass.
    """
    base, asked = plain.of_task(values, task)
    keys, asked_keys = plain.of_task(values, task, "keys")
    slow = leaves({f"key.0.{part}": values[f"key.0.{part}"] for part in PARTS})
    contrast = contrastive(F.linear(keys.detach(), *slow.values()), task.support.y, chosen, plain.options.margin)
    grads = gradient_features(each_gradient(contrast, slow))
    generated = split(linear(values, "d_out.0", last_output(values, grads)).squeeze(-1), slow)
    slow = leaves({f"base.{number}.{part}": values[f"base.{number}.{part}"] for number in (0, 1) for part in PARTS})
    losses = F.cross_entropy(mlp(slow, "base", 2, base.detach()), task.support.y, reduction="none")
    theta = mlp(values, "m", 3, gradient_features(each_gradient(losses, slow))).squeeze(-1)
    r, asked_r = (F.normalize(represent(values, generated, x), dim=1, eps=1e-5) for x in (keys, asked_keys))
    # The fast weights of each query are a mean of those of the support examples.
    fast = split((asked_r @ r.T).softmax(-1) @ theta, slow)
    h = linear(values, "base.0", asked).relu() + each_linear(fast, "base.0", asked).relu()
    return F.cross_entropy(linear(values, "base.1", h) + each_linear(fast, "base.1", h), task.query.y)


def drawn_examples(key: Key, task: Task, plain: Plain) -> Tensor:
    """Return the support examples whose gradients the LSTM of Meta Networks reads, in their order."""
    n = len(task.support.y)
    return permutation(fold_in(key, "samples"), n)[: min(plain.options.samples, n)]


def contrastive(r: Tensor, y: Tensor, chosen: Tensor, margin: float) -> Tensor:
    """Return the mean contrastive loss of each chosen example and all others."""
    same, itself = y[chosen].unsqueeze(1) == y, chosen.unsqueeze(1) == torch.arange(len(y))
    square = (r[chosen].unsqueeze(1) - r).square().sum(-1)
    apart = (margin - (square + 1e-12).sqrt()).clamp_min(0).square()
    return torch.where(same, square, apart).masked_fill(itself, 0).sum(1) / (len(y) - 1)


def each_gradient(losses: Tensor, params: Params) -> Tensor:
    """Return the gradient of each loss as a vector `[losses, entries]`."""
    which = torch.eye(len(losses), dtype=losses.dtype)
    grads = torch.autograd.grad(losses, list(params.values()), which, is_grads_batched=True)
    return torch.cat([g.flatten(1) for g in grads], 1)


def gradient_features(x: Tensor) -> Tensor:
    """Return `[..., 2]`: (ln|x| / 7, sign x) where |x| ≥ e⁻⁷, else (−1, e⁷ x)."""
    large = x.abs() >= exp(-7)
    return torch.stack([torch.where(large, x.abs().log() / 7, -1.0), torch.where(large, x.sign(), exp(7) * x)], -1)


def last_output(values: Params, sequence: Tensor) -> Tensor:
    """Return the last output of the LSTM for each entry of a sequence of gradients `[n, entries, 2]`."""
    bias = values["d.bias"]
    weights = [values["d.weight_ih"], values["d.weight_hh"], bias, torch.zeros_like(bias)]
    start = sequence.new_zeros(1, sequence.shape[1], len(bias) // 4)
    # The arguments after the weights: biases, layers, dropout, training, bidirectional, batch first.
    return torch.lstm(sequence, (start, start), weights, True, 1, 0.0, True, False, False)[0][-1]


def split(vector: Tensor, like: Params) -> Params:
    """Return the parts of a vector of all entries `[..., entries]`, each `[..., *shape]`."""
    parts = vector.split([value.numel() for value in like.values()], -1)
    return {name: part.unflatten(-1, like[name].shape) for name, part in zip(like, parts, strict=True)}


def represent(values: Params, generated: Params, keys: Tensor) -> Tensor:
    """Return the sum of a layer with slow and one with fast weights."""
    return linear(values, "key.0", keys).relu() + linear(generated, "key.0", keys).relu()


def each_linear(fast: Params, name: str, x: Tensor) -> Tensor:
    """Return the output of a linear layer that has other weights for each input."""
    return (fast[f"{name}.weight"] @ x.unsqueeze(-1)).squeeze(-1) + fast[f"{name}.bias"]
