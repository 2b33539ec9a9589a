"""Losses and scores of one task.

All functions work under `torch.func.grad` and `torch.func.vmap`, in any order of nesting.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metaforge.authoring.protocols import Kind


def one_hot(y: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one-hot vectors of class indices.

    `torch.nn.functional.one_hot` checks the values of its input, which fails under nested `torch.func` transforms;
    this function compares them with `arange` instead.

    Args:
        y: Class indices `[n]`, int64.
        classes: Number of classes.
        dtype: Type of the result.

    Returns:
        Zeros and ones `[n, classes]`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import one_hot
        >>> one_hot(torch.tensor([1, 0]), classes=3)
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    return (y.unsqueeze(-1) == torch.arange(classes, device=y.device)).to(dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 or its own wider type, because sums in bfloat16 or float16 lose digits.

    Args:
        x: A tensor of any shape.

    Returns:
        `x` itself if its type is float32 or float64, and `x` as float32 otherwise.

    Example:
        >>> import torch
        >>> from metaforge.authoring import at_least_float32
        >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> at_least_float32(torch.ones(2, dtype=torch.float64)).dtype
        torch.float64
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy, computed in float32 or wider.

    Args:
        logits: Logits `[n, classes]`.
        y: Class indices `[n]`, int64.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from metaforge.authoring import cross_entropy
        >>> cross_entropy(torch.zeros(4, 5), torch.tensor([0, 1, 2, 3]))
        tensor(1.6094)
    """
    logits = at_least_float32(logits)
    return -(logits.log_softmax(-1) * one_hot(y, logits.shape[-1], logits.dtype)).sum(-1).mean()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of predicted label distributions, computed in float32 or wider.

    Args:
        logits: Logits `[n, classes]`.

    Returns:
        A scalar between 0 and the logarithm of the number of classes, in nats.

    Example:
        >>> import torch
        >>> from metaforge.authoring import entropy
        >>> entropy(torch.zeros(4, 5))
        tensor(1.6094)
    """
    logs = at_least_float32(logits).log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def mean_squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error over all examples and outputs, computed in float32 or wider.

    Args:
        prediction: Predictions `[n, outputs]`.
        y: Targets `[n, outputs]`.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from metaforge.authoring import mean_squared_error
        >>> mean_squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [3.0]]))
        tensor(0.5000)
    """
    return (at_least_float32(prediction) - y).square().mean()


def criterion(kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the task loss for a kind of task.

    Args:
        kind: `"classification"` or `"regression"`.

    Returns:
        `cross_entropy` or `mean_squared_error`.

    Example:
        >>> from metaforge.authoring import criterion
        >>> criterion("regression").__name__
        'mean_squared_error'
    """
    return cross_entropy if kind == "classification" else mean_squared_error


def score(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the score of a task: the accuracy in [0, 1] in classification, the mean squared error in regression.

    Args:
        kind: `"classification"` or `"regression"`.
        prediction: Logits `[n, classes]`, or predictions `[n, outputs]`.
        y: Class indices `[n]`, or targets `[n, outputs]`.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from metaforge.authoring import score
        >>> score("classification", torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    if kind == "classification":
        return (prediction.argmax(-1) == y).to(at_least_float32(prediction).dtype).mean()
    return mean_squared_error(prediction, y)
