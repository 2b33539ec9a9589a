"""Replace the layers of a network by equivalents that every transform differentiates exactly."""

from __future__ import annotations

import copy

from torch import nn

from metaforge.authoring.layers.dropout import Dropout
from metaforge.authoring.layers.images import Conv2d, MaxPool2d, ReLU
from metaforge.authoring.layers.norms import BatchNorm, ForwardContext, GroupNorm, LayerNorm
from metaforge.errors import ConfigError

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


_CHANNEL_DROPOUT = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


_NOISY = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


NORMS = (BatchNorm, LayerNorm, GroupNorm)


_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def exchange_layers(module: nn.Module, frame: ForwardContext) -> nn.Module:
    """Return a copy of `module` with every native norm and dropout replaced; parameter names stay as they were.

    The copy is in evaluation mode: whatever else a layer would do in training (draw noise, move buffers) has no key.
    """
    module = copy.deepcopy(module)
    pooled = pools(module)
    whole = _replacement(module, "", frame, pooled)
    if whole is not None:
        return whole.eval()
    new: dict[nn.Module, nn.Module | None] = {}
    # A layer may stand under several names: it is replaced under each, by one layer.
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if child not in new:
            new[child] = _replacement(child, name, frame, pooled)
        if (layer := new[child]) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer)
    return module.eval()


def _replacement(module: nn.Module, name: str, frame: ForwardContext, pooled: bool) -> nn.Module | None:
    if isinstance(module, _BATCH):
        return BatchNorm(module, name, frame)
    if isinstance(module, nn.LayerNorm):
        return LayerNorm(module)
    if isinstance(module, _INSTANCE):
        return GroupNorm(module, int(module.num_features))
    if isinstance(module, nn.GroupNorm):
        return GroupNorm(module, module.num_groups)
    if isinstance(module, (nn.Dropout, *_CHANNEL_DROPOUT)):
        return Dropout(module.p, name, frame, channels=not isinstance(module, nn.Dropout))
    if isinstance(module, _NOISY):
        raise ConfigError(
            f"A layer of type {type(module).__name__} draws noise that no key governs.",
            where=f"backbone, layer {name!r}",
            remedy="use nn.Dropout, or noise of a regularizer",
        )
    return replacement(module, pooled=pooled)


def pools(network: nn.Module) -> bool:
    """Return whether a network has max pooling whose windows lie side by side."""
    return any(_side_by_side(module) for module in network.modules())


def replacement(module: nn.Module, *, pooled: bool = False) -> nn.Module | None:
    """Return a layer with the same parameters in place of torch's own, or None where this kind is left to torch.

    `pooled` says whether its network pools.
    """
    kind: type[nn.Module] | None = None
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kind = Conv2d
    elif _side_by_side(module):
        kind = MaxPool2d
    elif type(module) is nn.ReLU:
        kind = ReLU
    if kind is None:
        return None
    layer = kind.__new__(kind)
    layer.__dict__ = module.__dict__ | ({"pooled": pooled} if kind is Conv2d else {})
    return layer


def _side_by_side(module: nn.Module) -> bool:
    if type(module) is not nn.MaxPool2d:
        return False
    plain = module.padding == 0 and module.dilation == 1 and not module.ceil_mode and not module.return_indices
    return plain and isinstance(module.kernel_size, int) and module.stride == module.kernel_size
