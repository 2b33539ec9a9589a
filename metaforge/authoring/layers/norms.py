"""Norm and dropout layers for pure models.

Norm layers are built of primitives, exact under every order of `torch.func` transforms; batch norm follows a policy:

- `transductive`: the statistics of the batch at hand, the query batch's own for queries.
- `support`: queries are normalised by the statistics of the support set under the adapted weights.
- `running`: batch statistics in training, their running average in evaluation.
- `per-step`: as `running`, with one average for each inner step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metaforge.authoring.functional import at_least_float32
from metaforge.authoring.protocols import STATE, NormPolicy, Params, Pass
from metaforge.errors import ConfigError
from metaforge.kernels.batch_norm import batch_norm


class ForwardContext:
    """What the norm layers and taps of one model share during a forward pass: where it stands, and what they saw."""

    def __init__(self, policy: NormPolicy) -> None:
        self.policy = policy
        self.at = Pass()
        self.state: Params = {}
        self.values: Params = {}
        self.seen: Params = {}
        self.deltas: Params = {}

    @contextmanager
    def running(self, at: Pass, state: Params, values: Params) -> Iterator[None]:
        """Hold a pass's context while the module runs; nothing outlives it."""
        self.at, self.state, self.values, self.seen, self.deltas = at, state, values, {}, {}
        try:
            yield
        finally:
            self.at, self.state, self.values, self.seen, self.deltas = Pass(), {}, {}, {}, {}

    def normalised(self, layer: BatchNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `x` normalised by the statistics of this pass, scaled and shifted; note what must outlive it."""
        mean_name, var_name = f"{STATE}model.{layer.name}.mean", f"{STATE}model.{layer.name}.var"
        training = self.at.key is not None
        if self.policy == "support":
            return self._by_support(layer, x, weight, bias)
        if self.policy in ("running", "per-step") and not training:
            mean, var = self._slot(self.state[mean_name]), self._slot(self.state[var_name])
            return layer.scaled(x, mean, var, weight, bias)
        y, mean, var = batch_norm(x, weight, bias, layer.eps)
        if self.policy != "transductive":
            count = x.numel() // x.shape[1]
            unbiased = var.detach() * (count / max(count - 1, 1))
            self.deltas[mean_name] = self._delta(self.state[mean_name], mean.detach(), layer.momentum)
            self.deltas[var_name] = self._delta(self.state[var_name], unbiased, layer.momentum)
        return y

    def _by_support(self, layer: BatchNorm, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `x` normalised by the support set's statistics, which depend on the weights."""
        names = [f"{STATE}model.{layer.name}.{what}" for what in ("mean", "var")]
        if self.at.role != "query":
            dims = (0, *range(2, x.dim()))
            mean = x.mean(dims)
            var = (x - layer.broadcast(mean, x)).square().mean(dims)
            self.seen.update(zip(names, (mean, var), strict=True))
            return layer.scaled(x, mean, var, weight, bias)
        return layer.scaled(x, self.state[names[0]], self.state[names[1]], weight, bias)

    def _slot(self, statistic: Tensor) -> Tensor:
        if self.policy == "running":
            return statistic
        return statistic[min(self.at.step, statistic.shape[0] - 1)]

    def _delta(self, old: Tensor, new: Tensor, momentum: float) -> Tensor:
        if self.policy == "running":
            return momentum * (new - old)
        steps = torch.arange(old.shape[0], device=old.device)
        chosen = (steps == min(self.at.step, old.shape[0] - 1)).to(old.dtype)
        return chosen.unsqueeze(-1) * momentum * (new - old)


class BatchNorm(nn.Module):
    """Normalises each feature (axis 1) over the batch and all positions, by the frame's policy."""

    def __init__(self, native: nn.Module, name: str, frame: ForwardContext) -> None:
        super().__init__()
        self.name, self.frame = name, frame
        self.features = int(native.num_features)  # type: ignore[arg-type]
        self.eps, momentum = float(native.eps), native.momentum  # type: ignore[arg-type]
        if momentum is None:
            raise ConfigError(
                "A batch norm with momentum=None keeps a cumulative average, which has no place in a pure model.",
                where=f"backbone, layer {name!r}",
                remedy="give its momentum a number, such as 0.1",
            )
        self.momentum = float(momentum)  # type: ignore[arg-type]
        # Where running statistics start: those of a network that was trained before, or 0 and 1.
        self.mean, self.var = _statistics(native, self.features)
        self.weight: nn.Parameter | None = native.weight  # type: ignore[assignment]
        self.bias: nn.Parameter | None = native.bias  # type: ignore[assignment]

    @staticmethod
    def broadcast(vector: Tensor, x: Tensor) -> Tensor:
        """Return `[features]` shaped to multiply `x` `[n, features, ...]`."""
        return vector.reshape(1, -1, *(1,) * (x.dim() - 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, features, ...]` normalised, scaled and shifted."""
        given, x = x.dtype, at_least_float32(x)
        weight = x.new_ones(self.features) if self.weight is None else self.weight
        bias = x.new_zeros(self.features) if self.bias is None else self.bias
        return self.frame.normalised(self, x, weight, bias).to(given)

    def scaled(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `x` normalised by the given statistics, scaled and shifted."""
        scale = (var + self.eps).rsqrt() * weight
        return x * self.broadcast(scale, x) + self.broadcast(bias - mean * scale, x)


class LayerNorm(nn.Module):
    """Layer norm of primitives over the last dimensions."""

    def __init__(self, native: nn.LayerNorm) -> None:
        super().__init__()
        self.dims = tuple(range(-len(native.normalized_shape), 0))
        self.eps, self.weight, self.bias = native.eps, native.weight, native.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[..., *normalized_shape]` normalised, scaled and shifted."""
        given, x = x.dtype, at_least_float32(x)
        centred = x - x.mean(self.dims, keepdim=True)
        out = centred * (centred.square().mean(self.dims, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            out = out * self.weight
        return (out if self.bias is None else out + self.bias).to(given)


class GroupNorm(nn.Module):
    """Group norm of primitives: each group of features of each example; a group for each feature is instance norm."""

    def __init__(
        self, native: nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d, groups: int
    ) -> None:
        super().__init__()
        self.groups, self.eps = groups, float(native.eps)
        self.weight: nn.Parameter | None = native.weight
        self.bias: nn.Parameter | None = native.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, features, ...]` normalised, scaled and shifted."""
        given, x = x.dtype, at_least_float32(x)
        apart = x.reshape(x.shape[0], self.groups, -1)
        centred = apart - apart.mean(-1, keepdim=True)
        out = (centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()).reshape(x.shape)
        if self.weight is not None:
            out = out * BatchNorm.broadcast(self.weight, x)
        return (out if self.bias is None else out + BatchNorm.broadcast(self.bias, x)).to(given)


def _statistics(native: nn.Module, features: int) -> tuple[Tensor, Tensor]:
    mean, var = native.running_mean, native.running_var
    if isinstance(mean, Tensor) and isinstance(var, Tensor):
        return mean.detach().clone(), var.detach().clone()
    return torch.zeros(features), torch.ones(features)
