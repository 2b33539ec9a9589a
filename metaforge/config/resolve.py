"""Resolving the configuration of a run from the defaults and the layers that the user wrote.

The layers, from the lowest to the highest:

1. the defaults of the core, and the default optimiser and schedule;
2. the `defaults` of the data set for its kind of task;
3. the `defaults` of the learner for that kind of task;
4. the `defaults` for that kind of task of the adapters and regularizers that higher layers choose;
5. the settings of the presets that the user's layers choose;
6. the user's layers: a TOML file, then the command line.

A higher layer wins. If it chooses another plugin, the options of lower layers for the old plugin are dropped. If it
gives a set of adapters, regularizers or hooks, that set replaces the lower one. Each value keeps its origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metaforge.config.after_colon import expanded
from metaforge.config.merge import Merged
from metaforge.config.plugin_defaults import KNOWN, component_defaults, plugin_defaults, with_presets
from metaforge.config.resolved import Choice, Resolved
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES, Layer, normalise
from metaforge.config.toml_text import flatten
from metaforge.config.validation import validate
from metaforge.errors import ConfigError
from metaforge.registry.loading import plugin_errors
from metaforge.registry.registry import Registry

if TYPE_CHECKING:
    from metaforge.authoring.kinds import TaskKind

# For each table that only some learners use: its kind of plugin, the item of the learner's `tags.needs` that it
# requires, and what is wrong with a learner without that item.
_NEEDS = (
    ("backbone", "backbone", "backbone", "uses no backbone"),
    ("adapters", "adapter", "adapter", "uses no adapter"),
    ("regularizers", "regularizer", "backbone", "has no backbone for a regularizer to act on"),
)

# The kinds of plugin of which every run has one, whatever its learner; the registry knows their defaults.
_ALWAYS = ("optimizer", "schedule")


def resolve(layers: Sequence[Layer], registry: Registry, *, complete: bool = True) -> Resolved:
    """Return the configuration that the user's layers describe, on top of the defaults.

    Args:
        layers: The user's layers, from the lowest to the highest.
        registry: The plugins that may be used.
        complete: Whether a learner and a data set are required. Otherwise either may be missing, to inspect the rest.

    Returns:
        The configuration, with the origin of each value.

    Raises:
        ConfigError: A value is invalid, or the plugins do not fit together.
        PluginError: A plugin does not exist or cannot be used.
    """
    layers = [normalise(layer, KNOWN) for layer in layers]
    layers = [expanded(registry, layer) for layer in with_presets(registry, layers)]
    learner = _chosen_name(layers, "learner")
    if learner is None and complete:
        raise ConfigError(
            "No learner is chosen.",
            where=f"installed learners: {', '.join(registry.names('learner')) or 'none'}",
            remedy="choose one with --learner NAME, or in a file with [learner] name = ...",
        )
    learner_class = None if learner is None else registry.load("learner", learner)
    default_dataset = _default_dataset(registry, learner_class)
    dataset = _chosen_name(layers, "dataset") or default_dataset
    if dataset is None and complete:
        raise ConfigError(
            "No data set is chosen, and there is no default for this learner.",
            where=f"installed data sets: {', '.join(registry.names('dataset')) or 'none'}",
            remedy="choose one with --dataset NAME, or in a file with [dataset] name = ...",
        )
    merged = Merged()
    kept = _without_replaced_options(layers, {"learner": None, "dataset": default_dataset}, merged)
    dataset_class = None if dataset is None else _dataset_class(registry, dataset, kept)
    _apply_defaults(merged, registry, layers, (learner, learner_class), (dataset, dataset_class))
    for layer in kept:
        merged.apply(layer)
    if learner_class is not None:
        _check_needs(merged, str(learner), learner_class)
    return _validate(merged, registry, learner_class)


def _chosen_name(layers: Sequence[Layer], key: str) -> str | None:
    """Return the name of the plugin that the highest layer chooses for a table, or None if no layer does."""
    names = [layer.values[key]["name"] for layer in layers if "name" in layer.values.get(key, {})]
    return names[-1] if names else None


def _default_dataset(registry: Registry, learner: type[Any] | None) -> str | None:
    """Return the data set used when none is named: the default for the first kind of task that the learner solves."""
    kinds = ["classification"] if learner is None else sorted(learner.tags.kinds)
    return next((name for kind in kinds if (name := _default_name(registry, kind)) is not None), None)


def _default_name(registry: Registry, key: str) -> str | None:
    """Return the name of the plugin used when none is named, for a kind of task or a kind of plugin."""
    entry = registry.default(key)
    return None if entry is None else entry.qualified if entry.state == "ambiguous" else entry.name


def _dataset_class(registry: Registry, name: str, layers: Sequence[Layer]) -> type[Any]:
    """Return the class of a data set under the options that the user's layers set."""
    options = {option: value for layer in layers for option, value in layer.values.get("dataset", {}).items()}
    cls = registry.load("dataset", name)
    with plugin_errors(registry.find("dataset", name), "cannot tell its kind of tasks", keep_metaforge_errors=True):
        variant: type[Any] = cls.variant(options)
    return variant


def _apply_defaults(
    merged: Merged,
    registry: Registry,
    layers: Sequence[Layer],
    learner: tuple[str | None, type[Any] | None],
    dataset: tuple[str | None, type[Any] | None],
) -> None:
    """Apply the names of the learner and the data set, and the defaults of both and of the user's choices."""
    for kind in _ALWAYS:
        if (default := _default_name(registry, kind)) is not None:
            merged.apply(Layer("default", {kind: {"name": default}}, explicit=False))
    (learner_name, learner_class), (dataset_name, dataset_class) = learner, dataset
    if learner_class is not None:
        merged.apply(Layer("default", {"learner": {"name": learner_name}}, explicit=False))
    if dataset_class is not None:
        if learner_class is not None:
            _check_kinds(learner_class, learner_name, dataset_class, str(dataset_name), registry)
        merged.apply(Layer("default", {"dataset": {"name": dataset_name}}, explicit=False))
        task_kind = _kind_of(dataset_class).name
        for kind, (name, cls) in (("dataset", dataset), ("learner", learner)):
            if cls is not None:
                merged.apply(plugin_defaults(registry, kind, str(name), cls, task_kind))
        for layer in component_defaults(registry, layers, merged.values, task_kind):
            merged.apply(layer)


def _check_kinds(
    learner_class: type[Any], learner: str | None, dataset_class: type[Any], dataset: str, registry: Registry
) -> None:
    """Raise `ConfigError` unless the learner solves the kind of task that the data set has."""
    kind = _kind_of(dataset_class)
    if kind.solved_by(learner_class.tags):
        return
    kinds = " and ".join(sorted(learner_class.tags.kinds))
    default = _default_dataset(registry, learner_class)
    raise ConfigError(
        f"The learner {learner!r} solves {kinds} tasks, but the data set {dataset!r} has {kind.name} tasks.",
        remedy=f"choose a data set of {kinds} tasks" + (f", such as {default}" if default else ""),
    )


def _kind_of(dataset_class: type[Any]) -> TaskKind:
    """Return the kind of task of a data set's class."""
    # Imported here, because the module of the kinds imports torch; the class has imported it already.
    from metaforge.authoring.kinds import task_kind

    return task_kind(dataset_class.kind)


def _without_replaced_options(layers: Sequence[Layer], names: Mapping[str, str | None], merged: Merged) -> list[Layer]:
    """Return the layers without options for a learner or data set that a higher layer replaces by another.

    `names` has the default name of each of the two tables. A note in `merged` reports the dropped options.
    """
    values = [dict(layer.values) for layer in layers]
    for key, default in names.items():
        current, holders = default, list[int]()
        for index, layer in enumerate(layers):
            table = layer.values.get(key, {})
            name = table.get("name", current)
            if current is not None and name != current:
                for holder in holders:
                    old = {"name": current, **values[holder].pop(key)}
                    merged.note_dropped(key, old, layer.origin_of(f"{key}.name"), name)
                holders = []
            current = name
            if table:
                holders.append(index)
    return [replace(layer, values=kept) for layer, kept in zip(layers, values, strict=True)]


def _check_needs(merged: Merged, name: str, cls: type[Any]) -> None:
    """Drop default components that the learner does not use.

    Raises `ConfigError` for an explicit component that it does not use, and for a missing one that it needs.
    """
    for key, kind, need, reason in _NEEDS:
        chosen = merged.values.get(key, {})
        if need not in cls.tags.needs:
            if merged.values.pop(key, None) and key in merged.explicit:
                component = chosen.get("name", "options") if key == "backbone" else ", ".join(chosen)
                raise ConfigError(
                    f"The learner {name!r} {reason}, but one is given: {component}.",
                    where=merged.explicit[key],
                    remedy=f"leave the {kind} out, or choose a learner that uses one",
                )
        elif kind == need and (not chosen or (key == "backbone" and "name" not in chosen)):
            raise ConfigError(
                f"The learner {name!r} needs {'an' if kind == 'adapter' else 'a'} {kind}, and none is chosen.",
                where=merged.explicit.get(key, "no default applies"),
                remedy=f"choose one with --{kind} NAME; `metaforge list-plugins --kind {kind}` shows them",
            )


def _validate(merged: Merged, registry: Registry, learner: type[Any] | None) -> Resolved:
    """Return the configuration with all settings and options validated; raise `ConfigError` for the invalid ones."""
    values = merged.values
    if learner is None:
        # Options for a learner cannot be validated without its class.
        values.pop("learner", None)
    sections = {key: values[key] for key in RunConfig.model_fields if key in values}
    run = validate(RunConfig, sections, "", merged.origins)
    singles: dict[str, Choice | None] = {}
    for key in SINGLES:
        table = dict(values.get(key, {}))
        name = table.pop("name", None)
        if name is None and table:
            raise ConfigError(
                f"{key} has options but no name.", where=merged.explicit.get(key, ""), remedy=f"set {key}.name"
            )
        singles[key] = None if name is None else _choice(registry, key, name, table, key, merged)
    sets = {
        key: tuple(
            _choice(registry, kind, name, options, f"{key}.{name}", merged)
            for name, options in values.get(key, {}).items()
        )
        for key, kind in SETS.items()
    }
    for key, chosen in sets.items():
        _check_duplicates(key, chosen, merged)
    resolved = Resolved(
        run,
        learner=singles["learner"],
        dataset=singles["dataset"],
        backbone=singles["backbone"],
        optimizer=singles["optimizer"],
        schedule=singles["schedule"],
        adapters=sets["adapters"],
        regularizers=sets["regularizers"],
        hooks=sets["hooks"],
        notes=tuple(merged.notes),
    )
    origins = {path: _origin(merged.origins, path) for path, _ in flatten(resolved.to_dict())}
    return replace(resolved, origins=origins)


def _choice(registry: Registry, kind: str, name: str, options: Mapping[str, Any], path: str, merged: Merged) -> Choice:
    """Return the plugin of a name with its options validated; `path` is the dotted path of its table."""
    cls = registry.load(kind, name)
    # A learner's defaults may set an option of the usual component; another component may not have that option.
    known = cls.Config.model_fields
    options = {
        option: value
        for option, value in options.items()
        if option in known or f"{path}.{option}" not in merged.default_paths
    }
    entry = registry.find(kind, name)
    with plugin_errors(entry, "cannot read its options", keep_metaforge_errors=True):
        return Choice(entry, cls, validate(cls.Config, options, path, merged.origins))


def _check_duplicates(key: str, chosen: Sequence[Choice], merged: Merged) -> None:
    """Raise `ConfigError` if a set has one plugin twice: under its name and under its qualified name."""
    names = [choice.entry.qualified for choice in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"The {key} contain {name!r} twice.",
                where=merged.origins.get(key, ""),
                remedy="name it once; a run cannot have two instances of one plugin",
            )


def _origin(origins: Mapping[str, str], path: str) -> str:
    """Return the origin of a value; of a table whose values have origins, that of the first value in it."""
    if path in origins:
        return origins[path]
    inside = [known for known in origins if known.startswith(f"{path}.")]
    return origins[inside[0]] if inside else "default"
