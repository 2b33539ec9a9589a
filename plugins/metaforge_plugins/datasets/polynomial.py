"""Polynomial regression: a task is one polynomial with random coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from metaforge.data import Bits, CurveDataset, CurveOptions, bits, episode_keys, normals

X_RANGE = (-1.0, 1.0)

Floats = NDArray[np.float64]


class PolynomialOptions(CurveOptions):
    """Options of the polynomial data set."""

    degree: int = Field(default=3, ge=0, le=20, description="highest power of x")
    scale: float = Field(default=1.0, gt=0, le=100, description="standard deviation of the coefficients")
    noise: float = Field(default=0.0, ge=0, le=100, description="standard deviation of the noise of the targets")


class Polynomial(CurveDataset):
    """Regression of polynomials with normal coefficients, from a few points in [-1, 1].

    The coefficients of all powers of x up to the degree have the mean 0 and the same standard deviation.

    Example:
        >>> from pathlib import Path
        >>> from metaforge.authoring import TaskShape
        >>> from metaforge_plugins.datasets.polynomial import Polynomial
        >>> polynomial = Polynomial(Polynomial.Config(degree=2), root=Path())
        >>> polynomial.sample("train", TaskShape(ways=1, shots=10, queries=15), 0, 4, seed=0).query.y.shape
        torch.Size([4, 15, 1])
    """

    Config = PolynomialOptions
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "regression": {"task": {"ways": 1, "shots": 10, "queries": 10}, "backbone": {"name": "mlp"}}
    }
    name, x_range = "polynomial", X_RANGE
    config: PolynomialOptions

    def curves(self, keys: Bits, x: Floats) -> Floats:
        """Return the polynomials of episodes with keys `[count]` at `x` `[count, n]`, with noise."""
        noise = normals(bits(keys, 2)[:, 1], x.shape[1])
        y: Floats = self._polynomial(keys, x) + self.config.noise * noise
        return y

    def truth(self, split: str, index: int, xs: ArrayLike, *, seed: int) -> Floats:
        """Return the values `[n]` of the polynomial of episode `index` at `xs` `[n]` without noise, for plots."""
        keys = bits(episode_keys(seed, split, index, 1), 3)
        values: Floats = self._polynomial(keys[:, 0], np.asarray(xs, dtype=np.float64)[None])[0]
        return values

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        """Return the distribution of the polynomials, and the mean squared error of predicting 0, their mean."""
        self.check(split)
        # The mean of x^(2k) over [-1, 1] is 1 / (2k + 1).
        square = self.config.scale**2 * sum(1 / (2 * power + 1) for power in range(self.config.degree + 1))
        return {
            "tasks": "unlimited",
            "degree": self.config.degree,
            "coefficients": f"normal, standard deviation {self.config.scale}",
            "noise": self.config.noise,
            "x": f"{X_RANGE[0]} to {X_RANGE[1]}",
            "error of predicting 0": square + self.config.noise**2,
        }

    def _polynomial(self, keys: Bits, x: Floats) -> Floats:
        """Return the polynomials of episodes with keys `[count]` at `x` `[count, n]`, by Horner's rule."""
        coefficients = self.config.scale * normals(bits(keys, 2)[:, 0], self.config.degree + 1)
        values: Floats = np.zeros_like(x)
        for coefficient in coefficients.T[::-1]:
            values = values * x + coefficient[:, None]
        return values
