"""The `defaults` of plugins, and the settings of presets, as layers of settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from metaforge.config.settings import RunConfig
from metaforge.config.sources import PRESETS, SETS, SINGLES, Layer, normalise
from metaforge.config.validation import validate
from metaforge.errors import PluginError
from metaforge.registry.registry import Registry

KNOWN = (*RunConfig.model_fields, *SINGLES, *SETS, PRESETS)
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


def with_presets(registry: Registry, layers: Sequence[Layer]) -> list[Layer]:
    """Return the user's layers above the settings of the presets that they choose, one layer for each.

    The last preset is the highest. What the layers say of presets is removed: a run's settings are what remains.

    Args:
        registry: The plugins that may be used.
        layers: The user's layers, normalised, from the lowest to the highest.

    Raises:
        ConfigError: A preset has a setting that does not exist, or is given options.
        PluginError: A preset does not exist, or it chooses presets itself.
    """
    found = []
    for name, options in _chosen(layers, PRESETS).items():
        cls, owner = registry.load("preset", name), registry.find("preset", name)
        validate(cls.Config, options, f"{PRESETS}.{name}", {})
        if PRESETS in cls.settings:
            raise PluginError(
                f"The preset {name!r} chooses presets.",
                where=f"{cls.__module__}:{cls.__qualname__}",
                remedy="its author should write the settings of both into it",
            )
        layer = normalise(Layer(f"preset {name}", cls.settings, explicit=False), KNOWN)
        found.append(layer.map_plugin_names(partial(registry.resolve_default, owner)))
    own = [replace(one, values={key: v for key, v in one.values.items() if key != PRESETS}) for one in layers]
    return [*found, *own]


def _chosen(layers: Sequence[Layer], key: str) -> Mapping[str, Any]:
    """Return the set of plugins that the highest layer with such a set chooses."""
    return next((layer.values[key] for layer in reversed(layers) if key in layer.values), {})


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
        chosen = _chosen(layers, key)
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
