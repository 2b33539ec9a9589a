"""Losses and scores of one task; `metaforge.authoring.kinds` says which kind of task has which of them.

All functions work under `torch.func.grad` and `torch.func.vmap`, in any order of nesting.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def binary_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over all examples and labels, computed in float32 or wider.

    It is `softplus(z) - y z`, whose first and second derivatives are those of the sigmoid at every logit, zero
    included; forms with `abs` or `clamp` have a kink there.

    Args:
        logits: Logits `[n, labels]`.
        y: Zeros and ones, or probabilities, `[n, labels]`.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> from metaforge.authoring import binary_cross_entropy
        >>> binary_cross_entropy(torch.zeros(4, 2), torch.ones(4, 2))
        tensor(0.6931)
    """
    logits = at_least_float32(logits)
    return (torch.nn.functional.softplus(logits) - logits * y).mean()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of examples whose largest logit is that of their class.

    Args:
        logits: Logits `[n, classes]`.
        y: Class indices `[n]`, int64.

    Returns:
        A scalar in [0, 1], in float32 or wider.

    Example:
        >>> import torch
        >>> from metaforge.authoring import accuracy
        >>> accuracy(torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.5000)
    """
    return (logits.argmax(-1) == y).to(at_least_float32(logits).dtype).mean()


def label_accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of labels that are predicted right, over all examples; a positive logit predicts the label.

    Args:
        logits: Logits `[n, labels]`.
        y: Zeros and ones `[n, labels]`.

    Returns:
        A scalar in [0, 1], in float32 or wider.

    Example:
        >>> import torch
        >>> from metaforge.authoring import label_accuracy
        >>> label_accuracy(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]))
        tensor(0.5000)
    """
    return ((logits > 0) == (y > 0.5)).to(at_least_float32(logits).dtype).mean()


def accuracy_by_instance(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the accuracy at the first, second, … example of a class in a stream of examples.

    Of the first examples of the classes nothing is known; a learner that remembers is right at later ones.

    Args:
        logits: Logits `[n, classes]` of the examples in the order of the stream.
        y: Class indices `[n]`, int64, with equally many examples of each class.

    Returns:
        Scalars in [0, 1] without a gradient, named `instance_1` to `instance_<n / classes>`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import accuracy_by_instance
        >>> logits, y = torch.tensor([[2.0, 0.0], [3.0, 1.0], [1.0, 4.0], [5.0, 2.0]]), torch.tensor([0, 1, 1, 0])
        >>> {name: float(value) for name, value in accuracy_by_instance(logits, y).items()}
        {'instance_1': 0.5, 'instance_2': 1.0}
    """
    correct = (logits.detach().argmax(-1) == y).to(at_least_float32(logits).dtype)
    instance = (y.unsqueeze(0) == y.unsqueeze(1)).tril().sum(1)
    found = {}
    for k in range(1, len(y) // logits.shape[-1] + 1):
        chosen = (instance == k).to(correct.dtype)
        found[f"instance_{k}"] = (chosen * correct).sum() / chosen.sum().clamp_min(1.0)
    return found
