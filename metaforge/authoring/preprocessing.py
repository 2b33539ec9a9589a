"""Gradients as inputs of a network: their logarithms and signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradient_features(x: Tensor, p: float) -> Tensor:
    """Return two features of each number, so that a network can read gradients of very different size.

    They are (ln|x| / p, sign x) if |x| ≥ e^(−p), and (−1, e^p x) otherwise (Andrychowicz et al. 2016,
    arXiv 1606.04474, appendix A).

    Args:
        x: Numbers of any shape `[...]`, such as the entries of a gradient.
        p: Minus the logarithm of the size below which a number is scaled, positive.

    Returns:
        The features `[..., 2]`.

    Example:
        >>> import math, torch
        >>> from metaforge.authoring import gradient_features
        >>> gradient_features(torch.tensor([1.0, -math.exp(-5.0), 0.0]), p=10.0)
        tensor([[ 0.0000,  1.0000],
                [-0.5000, -1.0000],
                [-1.0000,  0.0000]])
    """
    size = x.abs()
    large = size >= math.exp(-p)
    # The inner `where` keeps the derivative of the logarithm finite where its value is not used.
    logs = torch.where(large, size, 1.0).log() / p
    return torch.stack([torch.where(large, logs, -1.0), torch.where(large, x.sign(), math.exp(p) * x)], -1)
