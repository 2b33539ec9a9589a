"""Gaussian process regression: a task is one random function, drawn with a kernel of random scales.

The tasks of Garnelo et al., "Conditional Neural Processes", ICML 2018, section 4.1, and of Kim et al., "Attentive
Neural Processes", ICLR 2019, section 4. The formulas are those of Rasmussen and Williams, "Gaussian Processes for
Machine Learning", 2006, chapters 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from metaforge.authoring import TaskShape
from metaforge.data import Bits, CurveDataset, CurveOptions, Range, between, bits, normals, uniforms

Floats = NDArray[np.float64]

X_RANGE = (-2.0, 2.0)
# The shape of suggested tasks, and the number of tasks from which the likelihood of the exact posterior is computed.
SHAPE = TaskShape(ways=1, shots=25, queries=25)
FACT_TASKS = 500
# Added to the variance, relative to that of the function, without which a smooth kernel is numerically singular.
JITTER = 1e-8


class GaussianProcessOptions(CurveOptions):
    """Options of the Gaussian process data set."""

    kernel: Literal["rbf", "matern-5/2", "periodic"] = Field(default="rbf", description="covariance function")
    length_scale: Range = Field(default=(0.1, 0.6), description="limits of the length scale, drawn for each task")
    scale: Range = Field(
        default=(1.0, 1.0), description="limits of the standard deviation of the function, drawn for each task"
    )
    period: Range = Field(
        default=(1.0, 1.0), description="limits of the period, drawn for each task (kernel = periodic)"
    )
    noise: float = Field(default=0.1, ge=0, le=100, description="standard deviation of the noise of the targets")


class GaussianProcess(CurveDataset):
    """Regression of random functions that a Gaussian process draws, from a few noisy points in [-2, 2].

    The exact posterior of the process, which knows the kernel of each task, has the highest expected log-likelihood
    that any learner can reach; every evaluation has it as `exact_log_likelihood`.

    Departures from the paper:
    - Noise. The authors draw with a standard deviation of 0.02, which is below the 0.1 that their networks can express;
      here it is 0.1. `dataset.noise=0.02` gives theirs.
    - Scales. Garnelo et al. fix a length scale of 0.4 and a scale of 1; Kim et al. draw them from 0.1 to 0.6 and from
      0.1 to 1. Here the length scale is drawn and the scale is 1. `dataset.length_scale=[0.4, 0.4]` gives the former,
      `dataset.scale=[0.1, 1.0]` the latter.
    """

    Config = GaussianProcessOptions
    reference: ClassVar[str] = "https://arxiv.org/abs/1901.05761"
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "regression": {"task": SHAPE._asdict(), "backbone": {"name": "mlp"}}
    }
    name, x_range = "gaussian-process", X_RANGE
    config: GaussianProcessOptions

    def curves(self, keys: Bits, x: Floats) -> Floats:
        """Return noisy functions y = L ε `[count, n]` at `x` `[count, n]`, with the Cholesky factor L of Cov(y)."""
        factor, noise = self._factor(keys, x)
        y: Floats = (factor @ noise[..., None])[..., 0]
        return y

    def posterior(
        self, split: str, shape: TaskShape, first: int, count: int, *, seed: int
    ) -> tuple[Floats, Floats, Floats]:
        """Return the exact posterior of the queries' targets of some episodes, given their support sets.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            shape: Numbers of support and query points.
            first: Number of the first episode, from 0.
            count: Number of episodes.
            seed: Seed of the episodes.

        Returns:
            Means and standard deviations of the targets, noise included, each `[count, queries]`, and the targets.
        """
        keys, x = self.points(split, shape, first, count, seed=seed)
        factor, noise = self._factor(keys, x)
        # In y = L ε the support set determines the first numbers ε; the others are independent of it.
        known, unknown = factor[:, shape.shots :, : shape.shots], factor[:, shape.shots :, shape.shots :]
        mean = (known @ noise[:, : shape.shots, None])[..., 0]
        rest = (unknown @ noise[:, shape.shots :, None])[..., 0]
        return mean, np.sqrt(np.square(unknown).sum(-1)), mean + rest

    def log_likelihood(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Floats:
        """Return the mean log-likelihood of a query target under the exact posterior `[count]`, see `posterior`."""
        mean, deviation, y = self.posterior(split, shape, first, count, seed=seed)
        density = -0.5 * np.square((y - mean) / deviation) - np.log(deviation) - 0.5 * math.log(2 * math.pi)
        means: Floats = density.mean(-1)
        return means

    def measure(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Mapping[str, list[float]]:
        """Return the log-likelihood under the exact posterior of some episodes, see `log_likelihood`."""
        exact: list[float] = self.log_likelihood(split, shape, first, count, seed=seed).tolist()
        return {"exact_log_likelihood": exact}

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the distribution of the functions, and the log-likelihood of the exact posterior."""
        self.check(split)
        config = self.config
        scales = {"length scale": config.length_scale, "scale": config.scale}
        if config.kernel == "periodic":
            scales["period"] = config.period
        exact = self.log_likelihood(split, SHAPE, 0, FACT_TASKS, seed=0).mean()
        return {
            "tasks": "unlimited",
            "kernel": config.kernel,
            **{name: f"{low} to {high}" for name, (low, high) in scales.items()},
            "noise": config.noise,
            "x": f"{X_RANGE[0]} to {X_RANGE[1]}",
            f"log-likelihood of the exact posterior ({SHAPE.shots} shots)": round(float(exact), 3),
        }

    def _factor(self, keys: Bits, x: Floats) -> tuple[Floats, Floats]:
        """Return the Cholesky factors L `[count, n, n]` of the targets' covariance, and normal numbers ε `[count, n]`.

        L is lower triangular, so the targets of the first points do not depend on the others.
        """
        of_scales, of_noise = np.moveaxis(bits(keys, 2), -1, 0)
        numbers = uniforms(of_scales, 3)
        limits = (self.config.length_scale, self.config.scale, self.config.period)
        length, scale, period = (between(limit, numbers[:, i, None, None]) for i, limit in enumerate(limits))
        distance = np.abs(x[:, :, None] - x[:, None, :])
        variance = np.square(scale)
        covariance = variance * self._correlation(distance, length, period)
        covariance += (self.config.noise**2 + JITTER * variance) * np.eye(x.shape[1])
        factor: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
        return factor, normals(of_noise, x.shape[1])

    def _correlation(self, distance: Floats, length: Floats, period: Floats) -> Floats:
        """Return the correlation of function values at distances `[count, n, n]`."""
        ratio = distance / length
        if self.config.kernel == "rbf":
            correlation: Floats = np.exp(-0.5 * np.square(ratio))
        elif self.config.kernel == "matern-5/2":
            root = math.sqrt(5) * ratio
            correlation = (1 + root + np.square(root) / 3) * np.exp(-root)
        else:
            correlation = np.exp(-2 * np.square(np.sin(math.pi * distance / period) / length))
        return correlation
