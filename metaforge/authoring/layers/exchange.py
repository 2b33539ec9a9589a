"""Replace the layers of a network by equivalents that are exact under every order of `torch.func` transforms.

Batch, layer, group and instance norm, and dropout, are always replaced. `Conv2d`, `MaxPool2d` and `ReLU` are replaced
by layers that compute the same as torch's, and that the engine can switch to channels-last kernels.
"""

from __future__ import annotations

import copy

from torch import nn

from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.dropout import Dropout
from metaforge.authoring.layers.images import Conv2d, MaxPool2d, ReLU
from metaforge.authoring.layers.norms import BatchNorm, GroupNorm, LayerNorm
from metaforge.errors import ConfigError

NORMS = (BatchNorm, LayerNorm, GroupNorm)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CHANNEL_DROPOUTS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_OTHER_NOISE = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)


def exchange_layers(module: nn.Module, context: ForwardContext) -> nn.Module:
    """Return a copy of a network in which norm, dropout, convolution, pooling and ReLU layers are replaced.

    The copy is in evaluation mode, because other layers may draw noise or update buffers in training mode; then the
    network would not be a pure function of the values and the key.

    Args:
        module: The network, which is not changed.
        context: What the new layers share during a forward pass.

    Returns:
        The copy, with the same parameters under the same names.

    Raises:
        ConfigError: A layer draws noise, and there is no replacement for it.
    """
    module = copy.deepcopy(module)
    pooled = pools(module)
    whole = _replacement(module, "", context, pooled)
    if whole is not None:
        return whole.eval()
    new: dict[nn.Module, nn.Module | None] = {}
    # A layer may have several names; all of them then refer to the same new layer.
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if child not in new:
            new[child] = _replacement(child, name, context, pooled)
        if (layer := new[child]) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer)
    return module.eval()


def _replacement(module: nn.Module, name: str, context: ForwardContext, pooled: bool) -> nn.Module | None:
    if isinstance(module, BATCH_NORMS):
        return BatchNorm(module, name, context)
    if isinstance(module, nn.LayerNorm):
        return LayerNorm(module)
    if isinstance(module, _INSTANCE_NORMS):
        return GroupNorm(module, int(module.num_features))
    if isinstance(module, nn.GroupNorm):
        return GroupNorm(module, module.num_groups)
    if isinstance(module, (nn.Dropout, *_CHANNEL_DROPOUTS)):
        return Dropout(module.p, name, context, channels=not isinstance(module, nn.Dropout))
    if isinstance(module, _OTHER_NOISE):
        raise ConfigError(
            f"A layer of type {type(module).__name__} draws noise that no key governs.",
            where=f"backbone, layer {name!r}",
            remedy="use nn.Dropout, or a regularizer that adds noise",
        )
    return replacement(module, pooled=pooled)


def pools(network: nn.Module) -> bool:
    """Return whether a network has a max pooling layer whose windows do not overlap."""
    return any(_has_disjoint_windows(module) for module in network.modules())


def replacement(module: nn.Module, *, pooled: bool = False) -> nn.Module | None:
    """Return the replacement of an image layer, which shares its parameters, or None for other layers.

    Args:
        module: A layer of torch.
        pooled: Whether the network contains max pooling, see `pools`.

    Returns:
        A `Conv2d`, `MaxPool2d` or `ReLU` of `metaforge.authoring.layers.images`. None for subclasses of torch's layers
        and for options that the kernels do not implement: torch computes those.
    """
    kind: type[nn.Module] | None = None
    if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
        kind = Conv2d
    elif _has_disjoint_windows(module):
        kind = MaxPool2d
    elif type(module) is nn.ReLU:
        kind = ReLU
    if kind is None:
        return None
    layer = kind.__new__(kind)
    layer.__dict__ = module.__dict__ | ({"pooled": pooled} if kind is Conv2d else {})
    return layer


def _has_disjoint_windows(module: nn.Module) -> bool:
    """Return whether a module is max pooling whose square windows tile the image, without padding or dilation."""
    if type(module) is not nn.MaxPool2d:
        return False
    default = module.padding == 0 and module.dilation == 1 and not module.ceil_mode and not module.return_indices
    return default and isinstance(module.kernel_size, int) and module.stride == module.kernel_size
