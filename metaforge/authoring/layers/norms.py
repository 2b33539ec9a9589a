"""Batch, layer, group and instance norm that are exact under every order of `torch.func` transforms.

Torch's batch, layer and instance norm give wrong second-order gradients under `grad(vmap)`. The layers here are built
of primitive operations, or of a kernel with its own derivatives.

Batch norm follows one of four policies. In training, every pass of an inner loop over the support set is normalised by
that set's own statistics; under `running`, learners without an inner loop pass both sets as one batch. What normalises
the queries, and what changes in evaluation:

- `transductive`: the query batch's own statistics. Evaluation is the same.
- `support`: the statistics of the support set, computed with the adapted weights. Evaluation is the same.
- `running`: the query batch's own statistics in training. In evaluation, running averages normalise both sets. An inner
  loop in evaluation then takes its gradients with statistics that it never had in training, and scores far below
  training: the policy is for learners without an inner loop.
- `per-step`: as `transductive`. In addition, a running average of each inner step is collected in training. It is
  saved, but it normalises nothing: this is what the code of Antoniou et al. 2019 does (arXiv 1810.09502). Its
  paper suggests these averages for evaluation; but each is an average over tasks of networks that were adapted to
  different tasks, and fits none of them.

Where the running averages of a layer are frozen, `running` uses them in training too. A layer that its owner put into
evaluation mode is normalised by its running statistics under every policy, in training too. A layer that is used more
than once in a pass has statistics of each use under `support`, and one running average, which every use moves.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaforge.authoring.functional import matching
from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.losses import at_least_float32
from metaforge.authoring.protocols import STATE, Params
from metaforge.errors import ConfigError
from metaforge.kernels.batch_norm import batch_norm

AnyBatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class BatchNorm(nn.Module):
    """Batch norm over the batch and all positions, with the statistics that the context's policy selects.

    Args:
        native: A batch norm layer of torch; the new layer gets its parameters and running statistics.
        name: The layer's name in its network; its statistics are the entries `state.<prefix>.<name>.mean` and `.var`.
        context: The context of the network's forward pass.

    Raises:
        ConfigError: The native layer keeps a cumulative average (`momentum=None`).
    """

    def __init__(self, native: AnyBatchNorm, name: str, context: ForwardContext) -> None:
        super().__init__()
        self.context = context
        self.state_names = (f"{STATE}{context.prefix}.{name}.mean", f"{STATE}{context.prefix}.{name}.var")
        # In evaluation mode, as its owner wants it: its running statistics always normalise.
        self.fixed = not native.training and native.running_mean is not None
        # Frozen statistics normalise in training too.
        self.frozen = bool(matching(self.state_names, context.frozen))
        self.features, self.eps, momentum = native.num_features, native.eps, native.momentum
        if momentum is None and not self.fixed:
            raise ConfigError(
                "Batch norm with momentum=None keeps a cumulative average, which a pure function of its values cannot.",
                where=f"backbone, layer {name!r}",
                remedy="set its momentum to a number, such as 0.1",
            )
        self.momentum = momentum or 0.0
        # The running statistics of a network that was trained earlier, or zeros and ones.
        self._initial = _running_statistics(native, self.features)
        self.weight: nn.Parameter | None = native.weight
        self.bias: nn.Parameter | None = native.bias

    def initial_state(self, steps: int) -> Params:
        """Return the first running statistics that the policy keeps, by full name; `per-step` has `steps` + 1 of them.

        Args:
            steps: Number of inner steps.
        """
        policy = self.context.policy
        if not self.fixed and policy not in ("running", "per-step"):
            return {}
        lead = () if self.fixed or policy == "running" else (steps + 1,)
        return {
            name: initial.expand(*lead, -1).clone()
            for name, initial in zip(self.state_names, self._initial, strict=True)
        }

    @staticmethod
    def broadcast(vector: Tensor, x: Tensor) -> Tensor:
        """Return `vector` `[features]` reshaped to multiply `x` `[n, features, ...]`."""
        return vector.reshape(1, -1, *(1,) * (x.dim() - 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, features, ...]` normalised, scaled and shifted."""
        dtype, x = x.dtype, at_least_float32(x)
        weight = x.new_ones(self.features) if self.weight is None else self.weight
        bias = x.new_zeros(self.features) if self.bias is None else self.bias
        policy, training = self.context.policy, self.context.at.key is not None and not self.frozen
        if self.fixed or (policy == "running" and not training):
            mean, var = (self.context.values[name] for name in self.state_names)
        elif policy == "support":
            mean, var = self._support_statistics(x)
        else:
            return self._by_batch(x, weight, bias).to(dtype)
        scale = (var + self.eps).rsqrt() * weight
        return (x * self.broadcast(scale, x) + self.broadcast(bias - mean * scale, x)).to(dtype)

    def _by_batch(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return `x` normalised by its own statistics; in training, store the changes of the running statistics."""
        y, mean, var = batch_norm(x, weight, bias, self.eps)
        if self.context.policy != "transductive" and self.context.at.key is not None and not self.frozen:
            count = x.numel() // x.shape[1]
            unbiased = var.detach() * (count / max(count - 1, 1))
            for name, statistic in zip(self.state_names, (mean.detach(), unbiased), strict=True):
                before = self.context.state_changes.get(name)
                old = self.context.values[name] if before is None else self.context.values[name] + before
                change = self._change(old, statistic)
                self.context.state_changes[name] = change if before is None else before + change
        return y

    def _support_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the support set: those of `x` if it is the support set, else the stored ones.

        Gradients flow through them, because they depend on the adapted weights.
        """
        number = self.context.use(self.state_names[0])
        mean_name, var_name = (f"{name}.{number}" if number else name for name in self.state_names)
        if self.context.at.role == "query":
            return self.context.values[mean_name], self.context.values[var_name]
        dims = (0, *range(2, x.dim()))
        mean = x.mean(dims)
        var = (x - self.broadcast(mean, x)).square().mean(dims)
        self.context.support_statistics.update({mean_name: mean, var_name: var})
        return mean, var

    def _change(self, old: Tensor, new: Tensor) -> Tensor:
        """Return what to add to a running average; per step, it is zero for all entries but the current step's.

        Steps beyond the last entry change the last.
        """
        if self.context.policy == "running":
            return self.momentum * (new - old)
        steps = torch.arange(old.shape[0], device=old.device)
        chosen = (steps == min(self.context.at.step, old.shape[0] - 1)).to(old.dtype)
        return chosen.unsqueeze(-1) * self.momentum * (new - old)


class LayerNorm(nn.Module):
    """Layer norm over the last dimensions, built of primitive operations."""

    def __init__(self, native: nn.LayerNorm) -> None:
        super().__init__()
        self.dims = tuple(range(-len(native.normalized_shape), 0))
        self.eps, self.weight, self.bias = native.eps, native.weight, native.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[..., *normalized_shape]` normalised, scaled and shifted."""
        dtype, x = x.dtype, at_least_float32(x)
        centred = x - x.mean(self.dims, keepdim=True)
        out = centred * (centred.square().mean(self.dims, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            out = out * self.weight
        return (out if self.bias is None else out + self.bias).to(dtype)


class GroupNorm(nn.Module):
    """Group norm built of primitive operations; with one group per channel it is instance norm.

    Args:
        native: A group norm or instance norm layer of torch; the new layer gets its parameters, but no running
            statistics.
        groups: Number of groups into which the channels are divided.
    """

    def __init__(
        self, native: nn.GroupNorm | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d, groups: int
    ) -> None:
        super().__init__()
        self.groups, self.eps = groups, float(native.eps)
        self.weight: nn.Parameter | None = native.weight
        self.bias: nn.Parameter | None = native.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[n, features, ...]` normalised, scaled and shifted."""
        dtype, x = x.dtype, at_least_float32(x)
        groups = x.reshape(x.shape[0], self.groups, -1)
        centred = groups - groups.mean(-1, keepdim=True)
        out = (centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()).reshape(x.shape)
        if self.weight is not None:
            out = out * BatchNorm.broadcast(self.weight, x)
        return (out if self.bias is None else out + BatchNorm.broadcast(self.bias, x)).to(dtype)


def _running_statistics(native: nn.Module, features: int) -> tuple[Tensor, Tensor]:
    mean, var = native.running_mean, native.running_var
    if isinstance(mean, Tensor) and isinstance(var, Tensor):
        return mean.detach().clone(), var.detach().clone()
    return torch.zeros(features), torch.ones(features)
