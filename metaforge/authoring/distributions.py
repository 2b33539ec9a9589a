"""Normal distributions and mixtures of them: densities, divergences, and the coverage of predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_normal(y: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the logarithm of the density of a normal distribution, elementwise.

    Args:
        y: Where the density is taken `[...]`.
        mean: Means that broadcast with `y`.
        deviation: Standard deviations that broadcast with `y`.

    Returns:
        log N(y; μ, σ) `[...]`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import log_normal
        >>> log_normal(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1.0))
        tensor(-0.9189)
    """
    return -0.5 * ((y - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)


def normal_divergence(mean: Tensor, deviation: Tensor, other_mean: Tensor, other_deviation: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of a normal distribution from another one, elementwise.

    Args:
        mean: Means `[...]` of the distribution q.
        deviation: Standard deviations of q.
        other_mean: Means of the distribution p.
        other_deviation: Standard deviations of p.

    Returns:
        KL(q ‖ p) `[...]`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import normal_divergence
        >>> normal_divergence(*(torch.tensor(number) for number in (1.0, 1.0, 0.0, 1.0)))
        tensor(0.5000)
    """
    ratio, distance = deviation / other_deviation, (mean - other_mean) / other_deviation
    return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()


def log_mean(logarithms: Tensor) -> Tensor:
    """Return the logarithm of the mean over the first dimension of numbers whose logarithms are given.

    Args:
        logarithms: Logarithms `[samples, ...]`.

    Returns:
        The logarithm of the mean `[...]`.

    Example:
        >>> import torch
        >>> from metaforge.authoring import log_mean
        >>> log_mean(torch.tensor([1.0, 3.0]).log()).exp()
        tensor(2.)
    """
    return logarithms.logsumexp(0) - math.log(len(logarithms))


def coverage(y: Tensor, mean: Tensor, deviation: Tensor, share: float = 0.95) -> Tensor:
    """Return the fraction of targets that are in the central interval of their predicted distribution.

    Args:
        y: Targets `[...]`.
        mean: Means `[samples, ...]` of normal distributions, whose mixture is the prediction.
        deviation: Their standard deviations `[samples, ...]`.
        share: The probability of the interval.

    Returns:
        A scalar in [0, 1]; of a calibrated prediction it is `share` on average.

    Example:
        >>> import torch
        >>> from metaforge.authoring import coverage
        >>> coverage(torch.tensor([0.0, 1.9, 2.0, 9.0]), torch.zeros(1, 4), torch.ones(1, 4))
        tensor(0.5000)
    """
    below: Tensor = torch.special.ndtr((y - mean) / deviation).mean(0)
    return ((below - 0.5).abs() < share / 2).to(mean.dtype).mean()
