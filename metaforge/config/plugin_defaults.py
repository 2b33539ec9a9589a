"""The `defaults` of plugins as layers of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES, Layer, normalise
from metaforge.errors import PluginError
from metaforge.registry.registry import Registry

KNOWN = (*RunConfig.model_fields, *SINGLES, *SETS)
# The sets whose plugins bring defaults: hooks do not change what a run computes.
_COMPONENTS = ("adapters", "regularizers")


def plugin_defaults(registry: Registry, kind: str, name: str, cls: type[Any], task_kind: str) -> Layer:
    """Return the defaults of a learner or data set; raise `PluginError` if they choose a learner or data set."""
    layer = Layer(f"default of {kind} {name}", cls.defaults.get(task_kind, {}), explicit=False)
    other = "learner" if kind == "dataset" else "dataset"
    if other in layer.values or "name" in layer.values.get(kind, {}):
        raise PluginError(
            f"The defaults of {kind} {name!r} choose a {kind if other not in layer.values else other}.",
            where=f"{cls.__module__}:{cls.__qualname__}",
            remedy="a plugin's defaults may set its own options, the run's sections and the other kinds of plugins",
        )
    owner = registry.find(kind, name)
    return normalise(layer, KNOWN).map_plugin_names(lambda *plugin: registry.resolve_default(owner, *plugin))


def component_defaults(
    registry: Registry, layers: Sequence[Layer], lower: Mapping[str, Any], task_kind: str
) -> list[Layer]:
    """Return the defaults of the adapters and regularizers that the user's layers choose.

    They are above the defaults of the learner, because they follow from a choice of the user: with learned rates, say,
    another number of inner steps is right than with the learner's usual adapter. A plugin that the learner's defaults
    choose too has its options from there.

    Args:
        registry: The plugins that may be used.
        layers: The user's layers, normalised, from the lowest to the highest.
        lower: The merged defaults of the data set and the learner.
        task_kind: Name of the kind of task.

    Raises:
        PluginError: The defaults of an adapter or regularizer choose a plugin.
    """
    found = []
    for key in _COMPONENTS:
        chosen: Mapping[str, Any] = next((layer.values[key] for layer in reversed(layers) if key in layer.values), {})
        for name in chosen:
            if name not in lower.get(key, {}):
                found.append(_defaults_of_component(registry, key, name, chosen, task_kind))
    return found


def _defaults_of_component(registry: Registry, key: str, name: str, chosen: Mapping[str, Any], task_kind: str) -> Layer:
    """Return the defaults of one plugin of the set `chosen`, without changing which plugins are in the set."""
    cls, own = registry.load(SETS[key], name), registry.find(SETS[key], name).name
    settings = dict(cls.defaults.get(task_kind, {}))
    options = settings.pop(key, {})
    others = [table for table in SINGLES if "name" in settings.get(table, {})]
    if others or not {*options} <= {own} or {*settings} & {*SETS}:
        raise PluginError(
            f"The defaults of {SETS[key]} {name!r} choose a plugin.",
            where=f"{cls.__module__}:{cls.__qualname__}",
            remedy=f"they may set its own options, as {key}.{own}, and those of the learner and of the run's sections",
        )
    sets = {key: {other: options.get(own, {}) if other == name else {} for other in chosen}}
    return normalise(Layer(f"default of {SETS[key]} {name}", settings | sets, explicit=False), KNOWN)
