"""Weights from outside: a safetensors file, or what a backbone fetches, whose tensors become its initial weights.

They are read once, when a run begins. From then on the tensors are values of the run, and nothing reads them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.layers.exchange import BATCH_NORMS
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import BackboneOptions, Params, PretrainedOptions, TaskSpec
from metaforge.config.resolved import Choice
from metaforge.errors import ConfigError, shown
from metaforge.registry.loading import plugin_errors
from metaforge.runs.checkpoint_files import from_bytes, to_bytes
from metaforge.system.untrusted import UNREADABLE, read_regular_file, require_regular

SETTING = "backbone.weights"
PRETRAINED = "backbone.pretrained"


class OutsideWeights(NamedTuple):
    """Weights from a file or from a backbone.

    Attributes:
        tensors: The tensors by name.
        digest: The SHA-256 digest of the file, or of the safetensors file that the tensors would be.
        source: Where they come from, for `env.json`.
    """

    tensors: Params
    digest: str
    source: Mapping[str, str]


def source_setting(backbone: Choice | None) -> str | None:
    """Return the setting that names a source of the initial weights of a run's backbone; None if there is none."""
    config = None if backbone is None else backbone.config
    if isinstance(config, PretrainedOptions) and config.pretrained:
        return PRETRAINED
    return SETTING if isinstance(config, BackboneOptions) and config.weights else None


def outside_weights(backbone: Choice | None, spec: TaskSpec) -> OutsideWeights | None:
    """Return the initial weights of a run's backbone from their source; None if its options name none.

    Args:
        backbone: The backbone.
        spec: The spec of the training tasks.

    Raises:
        ConfigError: The file cannot be read, or the backbone cannot fetch the weights.
        PluginError: The backbone's code raised an exception.
    """
    setting = source_setting(backbone)
    if backbone is None or setting is None:
        return None
    if setting == SETTING and isinstance(backbone.config, BackboneOptions) and backbone.config.weights:
        return read_weights(Path(backbone.config.weights))
    failing = "cannot fetch its pretrained weights"
    with plugin_errors(backbone.entry, failing, keep_metaforge_errors=True), seeded(make_key(0, "pretrained")):
        fetched: Params = backbone.instantiate().pretrained(spec)
        # Copies, because tied tensors share memory, which the format does not allow.
        tensors = {name: tensor.detach().clone() for name, tensor in fetched.items()}
        data = to_bytes(tensors)
    return OutsideWeights(tensors, hashlib.sha256(data).hexdigest(), {"pretrained": backbone.name})


def read_weights(path: Path) -> OutsideWeights:
    """Return the tensors in a safetensors file; raise `ConfigError` if it cannot be read or is not one."""
    try:
        require_regular(path)
        data = read_regular_file(path, path.stat().st_size)
        return OutsideWeights(from_bytes(data), hashlib.sha256(data).hexdigest(), {"path": str(path)})
    except (*UNREADABLE, SafetensorError, KeyError, MemoryError) as error:
        raise ConfigError(
            f"The weights cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=f"{SETTING} = {path}",
            remedy="name a safetensors file; safetensors.torch.save_file(network.state_dict(), path) writes one",
        ) from error


def load_weights(module: nn.Module, weights: Params) -> list[str]:
    """Copy tensors into the parameters and buffers of a network, which must have the same names and shapes.

    Args:
        module: The network of a backbone. It is changed.
        weights: A tensor for every entry of its `state_dict`.

    Returns:
        The names of the batch norm layers whose running statistics have changed. A run uses them under one norm policy
        only.

    Raises:
        ConfigError: A tensor is missing or left over, or has another shape; or a buffer that is not part of a run's
            values, any but the statistics of batch norm, differs from that of the network.
    """
    own: Params = module.state_dict()
    for name in [*own, *(name for name in weights if name not in own)]:
        if problem := _misfit(name, own, weights):
            raise ConfigError(
                f"The weights do not fit the backbone: {problem}.",
                where=SETTING,
                remedy="give the options of the network that the file was saved from, or save"
                " `backbone.build(spec).state_dict()`",
            )
    _require_equal_buffers(module, weights)
    changed = [
        prefix or type(layer).__name__
        for prefix, layer in module.named_modules()
        if isinstance(layer, BATCH_NORMS)
        and not all(_equal(own[name], weights[name]) for name in _statistics(prefix) if name in own)
    ]
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return changed


def _statistics(layer: str) -> list[str]:
    """Return the names of the running statistics of a batch norm layer; that of the whole network is empty."""
    return [f"{layer}.{name}".lstrip(".") for name in ("running_mean", "running_var")]


def _misfit(name: str, own: Params, weights: Params) -> str:
    """Return why an entry does not fit, as a clause of a sentence; empty if it does."""
    ours, theirs = own.get(name), weights.get(name)
    if theirs is None:
        return f"the file has no {shown(name)}"
    if ours is None:
        return f"the network has no {shown(name)}, which the file has"
    if ours.shape != theirs.shape:
        return f"{shown(name)} has the shape {list(theirs.shape)} in the file and {list(ours.shape)} in the network"
    if ours.is_floating_point() != theirs.is_floating_point():
        return f"{shown(name)} is {theirs.dtype} in the file and {ours.dtype} in the network"
    return ""


def _require_equal_buffers(module: nn.Module, weights: Params) -> None:
    """Raise `ConfigError` for a buffer in the file that would be lost, because a run has no value for it."""
    for prefix, layer in module.named_modules():
        for name, buffer in () if isinstance(layer, BATCH_NORMS) else layer.named_buffers(recurse=False):
            full = f"{prefix}.{name}".lstrip(".")
            if full in weights and not _equal(buffer, weights[full]):
                raise ConfigError(
                    f"The buffer {shown(full)} differs from the network's own, and a run keeps no buffers besides the"
                    " statistics of batch norm.",
                    where=SETTING,
                    remedy="make it a parameter of the network, and freeze it with train.freeze",
                )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return torch.equal(ours, theirs.to(ours))
