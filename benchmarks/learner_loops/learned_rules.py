"""Methods that learn how an inner step is taken: its rates, a map of the gradient, an LSTM, or the inner loss."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learner_loops.plain import Plain, flat, gradients, moved, of
from metaforge.authoring import Params, Task


def meta_sgd(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML with a learned rate for each weight."""
    fast = of(values, plain.weights)
    for _ in range(plain.options.steps):
        grads = gradients(plain.loss(values | fast, task.support), fast)
        fast = {n: value - values[f"adapters.meta-sgd.rate.{n}"] * grads[n] for n, value in fast.items()}
    return plain.loss(values | fast, task.query)


def lslr(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML with a learned rate for each parameter tensor and inner step."""
    fast = of(values, plain.weights)
    for step in range(plain.options.steps):
        grads = gradients(plain.loss(values | fast, task.support), fast)
        fast = {n: value - values[f"adapters.lslr.rate.{n}"][step] * grads[n] for n, value in fast.items()}
    return plain.loss(values | fast, task.query)


def meta_curvature(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML with gradients that are multiplied by a learned matrix along each dimension of a weight."""
    fast, meta = of(values, plain.weights), "adapters.meta-curvature"

    def curved(name: str, g: Tensor) -> Tensor:
        if g.dim() == 1:
            return values[f"{meta}.vector.{name}"] * g
        out, inward = values[f"{meta}.out.{name}"], values[f"{meta}.in.{name}"]
        if g.dim() == 2:
            return out @ g @ inward.T
        rows = (out @ g.flatten(1)).view(*g.shape[:2], -1)
        return (inward @ rows @ values[f"{meta}.kernel.{name}"].T).view_as(g)

    for _ in range(plain.options.steps):
        grads = gradients(plain.loss(values | fast, task.support), fast)
        curves = {name: curved(name, g) for name, g in grads.items()}
        fast = moved(fast, curves, plain.adapters["sgd"].lr)
    return plain.loss(values | fast, task.query)


def kfo(values: Params, task: Task, plain: Plain) -> Tensor:
    """MAML with gradients that are multiplied by LᵀL and RᵀR; from the second step on, L and R take steps too."""
    fast, lr = of(values, plain.weights), plain.adapters["kfo"].lr
    factors = {name: value for name, value in values.items() if name.startswith("adapters.kfo.")}

    def transformed(name: str, g: Tensor) -> Tensor:
        left, right = factors[f"adapters.kfo.left.{name}"], factors[f"adapters.kfo.right.{name}"]
        matrix = g.unsqueeze(1) if g.dim() == 1 else g.flatten(2) if g.dim() > 2 else g
        return ((left.T @ left) @ matrix @ (right.T @ right)).view_as(g)

    for step in range(plain.options.steps):
        loss = plain.loss(values | fast, task.support)
        grads = gradients(loss, fast | factors if step else fast)
        factors = moved(factors, grads, lr) if step else factors
        fast = {name: value - lr * transformed(name, grads[name]) for name, value in fast.items()}
    return plain.loss(values | fast, task.query)


def learned_loss(values: Params, task: Task, plain: Plain) -> Tensor:
    """ML³: MAML whose inner loss is a network of one prediction and its target, added to the task loss."""
    layers = [values[f"loss.{number}"] for number in range(len(plain.options.widths) + 1)]
    fast, (x, y) = of(values, plain.weights), task.support
    for _ in range(plain.options.steps):
        output = plain(values | fast, x)
        known = plain.criterion(output, y)
        if not y.is_floating_point():
            output = output.log_softmax(1)
        target = y if y.is_floating_point() else F.one_hot(y, output.shape[1]).to(output.dtype)
        hidden = torch.stack([output, target], -1)
        for layer in layers[:-1]:
            hidden = F.relu(F.linear(hidden, layer))
        loss = plain.options.task_loss * known + F.softplus(F.linear(hidden, layers[-1])).mean()
        fast = moved(fast, gradients(loss, fast), plain.adapters["sgd"].lr)
    return plain.loss(values | fast, task.query)


def meta_lstm(values: Params, task: Task, plain: Plain) -> Tensor:
    """The LSTM meta-learner: each weight is moved by gates that an LSTM computes from its gradients and the losses."""
    fast = of(values, list(plain.everything.values()))
    meta = {name.removeprefix("adapters.lstm-optimizer."): value for name, value in values.items()}
    inward, inner = meta["lstm.weight"].split([4, meta["lstm.weight"].shape[1] - 4], 1)
    theta, nothing = flat(fast), torch.zeros_like(meta["lstm.bias"])
    forget = rate = torch.zeros_like(theta)
    hidden = cell = theta.new_zeros(len(theta), inner.shape[1])
    for _ in range(plain.options.steps):
        loss = plain.loss(fast, task.support)
        grad = flat(gradients(loss, fast, first_order=True))
        x = torch.cat([preprocessed(grad), preprocessed(loss.detach()).expand(len(grad), -1)], 1)
        hidden, cell = torch.lstm_cell(x, (hidden, cell), inward, inner, meta["lstm.bias"], nothing)
        forget = gate(meta, "forget", hidden, theta, forget)
        rate = gate(meta, "input", hidden, theta, rate)
        theta = forget * theta - rate * grad
        pieces = theta.split([value.numel() for value in fast.values()])
        fast = {name: piece.view_as(fast[name]) for name, piece in zip(fast, pieces, strict=True)}
    return plain.loss(fast, task.query)


def gate(meta: Params, name: str, hidden: Tensor, theta: Tensor, last: Tensor) -> Tensor:
    """Return a gate of each weight, from the state of its LSTM, the weight and the last gate."""
    inputs = torch.cat([hidden, theta.unsqueeze(1), last.unsqueeze(1)], 1)
    return torch.sigmoid(inputs @ meta[f"{name}.weight"] + meta[f"{name}.bias"])


def preprocessed(x: Tensor) -> Tensor:
    """Return `[..., 2]`: (ln|x| / 10, sign x) where |x| ≥ e⁻¹⁰, else (−1, e¹⁰ x)."""
    large = x.abs() >= exp(-10)
    logs = torch.where(large, x.abs().log() / 10, -1.0)
    return torch.stack([logs, torch.where(large, x.sign(), exp(10) * x)], -1)
