"""Replace the layers of a network by equivalents that are exact under every order of `torch.func` transforms.

Batch, layer, group and instance norm, and dropout, are always replaced. `Conv2d`, `MaxPool2d` and `ReLU` are replaced
by layers that compute the same as torch's, and that the engine can switch to channels-last kernels.

Only layers of exactly these types are replaced, and only without hooks. A subclass, a parametrized layer or one with
hooks computes what its owner wrote: it stays as it is, where that is a pure function of the values and the key.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import jit, nn
from torch.nn.parameter import is_lazy

from metaforge.authoring.layers.context import ForwardContext
from metaforge.authoring.layers.dropout import Dropout
from metaforge.authoring.layers.images import Conv2d, MaxPool2d, ReLU
from metaforge.authoring.layers.norms import AnyBatchNorm, BatchNorm, GroupNorm, LayerNorm
from metaforge.errors import ConfigError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
# The norm layers of a network after the exchange: replacements, and subclasses that stay as they are.
NORMS = (
    *(BatchNorm, LayerNorm, GroupNorm),
    *(*BATCH_NORMS, *_INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_OTHER_NOISE = (nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


_untouched: ContextVar[bool] = ContextVar("untouched", default=False)


@contextmanager
def untouched_layers() -> Iterator[None]:
    """Let networks that are built in the context keep torch's layers, to compare the two in plan `loop`.

    Exceptions are what plain PyTorch does not have: dropout from keys, and batch norm with other statistics than those
    of the batch.
    """
    token = _untouched.set(True)
    try:
        yield
    finally:
        _untouched.reset(token)


def exchange_layers(module: nn.Module, context: ForwardContext) -> nn.Module:
    """Return a copy of a network in which norm, dropout, convolution, pooling and ReLU layers are replaced.

    Args:
        module: The network, which is not changed.
        context: What the new layers share during a forward pass.

    Returns:
        The copy, with the same parameters under the same names.

    Raises:
        ConfigError: The network or a layer of it cannot be a pure function of the values and the key.
    """
    for name, part in module.named_modules():
        if reason := _reason_to_refuse(part):
            what, remedy = reason
            raise ConfigError(what, where=f"backbone, layer {name!r}" if name else "backbone", remedy=remedy)
    try:
        module = copy.deepcopy(module)
    except RuntimeError as error:
        raise ConfigError(
            f"The network cannot be copied: {str(error).strip().partition(chr(10))[0][:200]}",
            where="backbone",
            remedy="keep computed tensors out of its attributes; for weight norm use"
            " torch.nn.utils.parametrizations.weight_norm",
        ) from error
    pooled = pools(module)
    whole = _replacement(module, "", context, pooled)
    if whole is not None:
        return whole
    new: dict[nn.Module, nn.Module | None] = {}
    # A layer may have several names; all of them then refer to the same new layer.
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if child not in new:
            new[child] = _replacement(child, name, context, pooled)
        if (layer := new[child]) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer)
    return module


def _reason_to_refuse(layer: nn.Module) -> tuple[str, str] | None:
    """Return why a layer is refused, and what to do; None if it is not."""
    kind, training = type(layer).__name__, layer.training
    if isinstance(layer, jit.ScriptModule):
        return "A scripted module hides the functions that it calls.", "use the Python module from which it was made"
    if any(is_lazy(x) for x in (*layer._parameters.values(), *layer._buffers.values()) if x is not None):
        return f"A layer of type {kind} has no shapes yet.", "call the network once on inputs, or give the sizes"
    if isinstance(layer, _OTHER_NOISE) and training:
        return (
            f"A layer of type {kind} draws noise that no key governs.",
            "use nn.Dropout, or a regularizer that adds noise",
        )
    if isinstance(layer, _INSTANCE_NORMS) and layer.track_running_stats:
        return (
            f"A layer of type {kind} with running statistics would have to compute otherwise in evaluation.",
            "build it with track_running_stats=False",
        )
    if isinstance(layer, nn.RNNBase) and layer.dropout and layer.num_layers > 1 and training:
        return (
            f"A layer of type {kind} with dropout draws noise that no key governs.",
            "build it with dropout=0, and put nn.Dropout between layers of its type",
        )
    return None


def _replacement(module: nn.Module, name: str, context: ForwardContext, pooled: bool) -> nn.Module | None:
    """Return the replacement of a layer, or None if it stays as it is."""
    layer = _new_layer(module, name, context, pooled)
    if layer is not None:
        layer.training = module.training
        # Other modules read such attributes, for example the rate of dropout.
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and not hasattr(layer, attribute):
                setattr(layer, attribute, value)
    return layer


def _new_layer(module: nn.Module, name: str, context: ForwardContext, pooled: bool) -> nn.Module | None:
    kind = type(module)
    untouched = _untouched.get()
    if isinstance(module, BATCH_NORMS):
        plain = untouched and (context.policy == "transductive" or not module.training)
        if kind not in BATCH_NORMS or _has_hooks(module) or plain:
            _keep_batch_norm(module, name, context)
            return None
    if _has_hooks(module):
        return None
    if isinstance(module, BATCH_NORMS):
        return BatchNorm(module, name, context)
    if isinstance(module, DROPOUTS) and kind in DROPOUTS:
        return Dropout(module.p if module.training else 0.0, name, context, channels=kind is not nn.Dropout)
    if untouched:
        return None
    if type(module) is nn.LayerNorm:
        return LayerNorm(module)
    if isinstance(module, _INSTANCE_NORMS) and kind in _INSTANCE_NORMS:
        return GroupNorm(module, module.num_features)
    if type(module) is nn.GroupNorm:
        return GroupNorm(module, module.num_groups)
    return replacement(module, pooled=pooled)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward hooks, which a replacement would lose."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _keep_batch_norm(module: AnyBatchNorm, name: str, context: ForwardContext) -> None:
    """Let a subclass of batch norm, or one with hooks, normalise each batch by its own statistics.

    In evaluation mode it keeps its running statistics, which are then constants.

    Raises:
        ConfigError: The policy wants other statistics than those of the batch.
    """
    if not module.training or module.running_mean is None:
        return
    if context.policy != "transductive":
        raise ConfigError(
            f"A layer of type {type(module).__name__} computes its own forward pass, so it cannot be given the"
            f" statistics of norm={context.policy!r}.",
            where=f"backbone, layer {name!r}",
            remedy="use norm='transductive', or a batch norm of torch.nn itself, without hooks, in its place",
        )
    module.track_running_stats = False
    module.running_mean = module.running_var = module.num_batches_tracked = None


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
    if _has_hooks(module):
        return None
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
