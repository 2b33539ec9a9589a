"""The configuration of a run: defaults, plugins' defaults, a TOML file and the command line, laid over one another.

Lowest first: the core's defaults, the data set's `defaults` for its kind of task, the learner's, then what the user
says. A higher layer that chooses another plugin drops what lower ones say of the old one's options; one that gives a
set of adapters, regularizers or hooks replaces the set below. Every value keeps its origin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metaforge.config.merge import Merged
from metaforge.config.resolved import Choice, Resolved
from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES, Layer, normalise
from metaforge.config.toml_text import flatten
from metaforge.config.validation import validate
from metaforge.errors import ConfigError, PluginError
from metaforge.registry.registry import Registry

_KNOWN = (*RunConfig.model_fields, *SINGLES, *SETS)
# A table, its kind of plugin, the need of a learner without which it means nothing, and why.
_NEEDS = (
    ("backbone", "backbone", "backbone", "uses no backbone"),
    ("adapters", "adapter", "adapter", "uses no adapter"),
    ("regularizers", "regularizer", "backbone", "has no backbone for a regularizer to act on"),
)


def resolve(layers: Sequence[Layer], registry: Registry, *, complete: bool = True) -> Resolved:
    """Return the configuration that the user's layers (lowest first) mean, on top of the defaults.

    A `complete` one has a learner and a data set; otherwise either may be left open, to look at the rest.
    Raises `ConfigError` for values that make no sense and plugins that do not fit, `PluginError` for unusable ones.
    """
    given = [normalise(layer, _KNOWN) for layer in layers]
    learner = _named(given, "learner")
    if learner is None and complete:
        raise ConfigError(
            "No learner is chosen.",
            where=f"installed learners: {', '.join(registry.names('learner')) or 'none'}",
            remedy="choose one with --learner NAME, or in a file with [learner] name = ...",
        )
    learner_class = None if learner is None else registry.load("learner", learner)
    default = _default_dataset(registry, learner_class)
    dataset = _named(given, "dataset") or default
    if dataset is None and complete:
        raise ConfigError(
            "No data set is chosen, and there is no default for this learner.",
            where=f"installed data sets: {', '.join(registry.names('dataset')) or 'none'}",
            remedy="choose one with --dataset NAME, or in a file with [dataset] name = ...",
        )
    fold = Merged()
    if learner_class is not None:
        fold.lay(Layer("default", {"learner": {"name": learner}}, given=False))
    if dataset is not None:
        dataset_class = registry.load("dataset", dataset)
        if learner_class is not None:
            _check_kinds(learner_class, learner, dataset_class, dataset, registry)
        fold.lay(Layer("default", {"dataset": {"name": dataset}}, given=False))
        for kind, name, cls in (("dataset", dataset, dataset_class), ("learner", learner, learner_class)):
            if cls is not None:
                fold.lay(_plugin_defaults(registry, kind, str(name), cls, dataset_class.kind))
    for layer in _without_stale(given, {"learner": None, "dataset": default}, fold):
        fold.lay(layer)
    if learner_class is not None:
        _drop_unneeded(fold, str(learner), learner_class)
    return _checked(fold, registry, learner_class)


def _named(layers: Sequence[Layer], key: str) -> str | None:
    names = [layer.values[key]["name"] for layer in layers if "name" in layer.values.get(key, {})]
    return names[-1] if names else None


def _default_dataset(registry: Registry, learner: type[Any] | None) -> str | None:
    """Return the data set used when none is named: the default for the first kind of task that the learner solves."""
    kinds = ["classification"] if learner is None else sorted(learner.tags.kinds)
    entries = [entry for kind in kinds if (entry := registry.default(kind)) is not None]
    if not entries:
        return None
    return entries[0].qualified if entries[0].state == "ambiguous" else entries[0].name


def _plugin_defaults(registry: Registry, kind: str, name: str, cls: type[Any], task_kind: str) -> Layer:
    """Return the settings that suit a plugin; it may speak of its own options, not choose learners or data sets."""
    layer = Layer(f"default of {kind} {name}", cls.defaults.get(task_kind, {}), given=False)
    other = "learner" if kind == "dataset" else "dataset"
    if other in layer.values or "name" in layer.values.get(kind, {}):
        raise PluginError(
            f"The defaults of {kind} {name!r} choose a {kind if other not in layer.values else other}.",
            where=f"{cls.__module__}:{cls.__qualname__}",
            remedy="a plugin's defaults may set its own options, the run's sections and the other kinds of plugins",
        )
    return normalise(layer, _KNOWN).renamed(lambda *plugin: registry.resolve_default(registry.find(kind, name), *plugin))


def _without_stale(layers: Sequence[Layer], names: Mapping[str, str | None], fold: Merged) -> list[Layer]:
    """Return the layers without options for a learner or data set that a higher layer replaces."""
    kept = [dict(layer.values) for layer in layers]
    for key, start in names.items():
        current, touched = start, list[int]()
        for index, layer in enumerate(layers):
            table = layer.values.get(key, {})
            name = table.get("name", current)
            if current is not None and name != current:
                for stale in touched:
                    fold.given[key] = layers[stale].origin
                    old = {"name": current, **kept[stale].pop(key)}
                    fold.dropped(key, old, layer.origin_of(f"{key}.name"), name)
                fold.given.pop(key, None)
                touched = []
            current = name
            if table:
                touched.append(index)
    return [
        Layer(layer.origin, values, layer.patches, layer.origins, layer.given)
        for layer, values in zip(layers, kept, strict=True)
    ]


def _check_kinds(
    learner_class: type[Any], learner: str | None, dataset_class: type[Any], dataset: str, registry: Registry
) -> None:
    if dataset_class.kind in learner_class.tags.kinds:
        return
    wanted = " and ".join(sorted(learner_class.tags.kinds))
    default = _default_dataset(registry, learner_class)
    raise ConfigError(
        f"The learner {learner!r} solves {wanted} tasks, but the data set {dataset!r} has {dataset_class.kind} tasks.",
        remedy=f"choose a data set of {wanted} tasks" + (f", such as {default}" if default else ""),
    )


def _drop_unneeded(fold: Merged, name: str, cls: type[Any]) -> None:
    """Drop default components that the learner has no use for; refuse those that the user gave, and gaps."""
    for key, kind, need, uses in _NEEDS:
        chosen = fold.values.get(key, {})
        if need not in cls.tags.needs:
            if fold.values.pop(key, None) and key in fold.given:
                what = chosen.get("name", "options") if key == "backbone" else ", ".join(chosen)
                raise ConfigError(
                    f"The learner {name!r} {uses}, but one is given: {what}.",
                    where=fold.given[key],
                    remedy=f"leave the {kind} out, or choose a learner that uses one",
                )
        elif kind == need and (not chosen or (key == "backbone" and "name" not in chosen)):
            raise ConfigError(
                f"The learner {name!r} needs {'an' if kind == 'adapter' else 'a'} {kind}, and none is chosen.",
                where=fold.given.get(key, "no default applies"),
                remedy=f"choose one with --{kind} NAME; `metaforge list-plugins --kind {kind}` shows them",
            )


def _checked(fold: Merged, registry: Registry, learner: type[Any] | None) -> Resolved:
    values = fold.values
    if learner is None:
        # Without a learner nothing says whether the options given for one make sense.
        values.pop("learner", None)
    sections = {key: values[key] for key in RunConfig.model_fields if key in values}
    run = validate(RunConfig, sections, "", fold.origins)
    singles: dict[str, Choice | None] = {}
    for key in SINGLES:
        table = dict(values.get(key, {}))
        name = table.pop("name", None)
        if name is None and table:
            raise ConfigError(
                f"{key} has options but no name.", where=fold.given.get(key, ""), remedy=f"set {key}.name"
            )
        singles[key] = None if name is None else _choice(registry, key, name, table, key, fold)
    sets = {
        key: tuple(
            _choice(registry, kind, name, options, f"{key}.{name}", fold)
            for name, options in values.get(key, {}).items()
        )
        for key, kind in SETS.items()
    }
    for key, chosen in sets.items():
        _refuse_twice(key, chosen, fold)
    resolved = Resolved(
        run,
        learner=singles["learner"],
        dataset=singles["dataset"],
        backbone=singles["backbone"],
        adapters=sets["adapters"],
        regularizers=sets["regularizers"],
        hooks=sets["hooks"],
        notes=tuple(fold.notes),
    )
    origins = {path: _origin(fold.origins, path) for path, _ in flatten(resolved.to_dict())}
    return replace(resolved, origins=origins)


def _choice(registry: Registry, kind: str, name: str, options: Mapping[str, Any], path: str, fold: Merged) -> Choice:
    cls = registry.load(kind, name)
    # A plugin's defaults may speak of an option of the usual component, which another one need not have.
    known = cls.Config.model_fields
    options = {key: value for key, value in options.items() if key in known or f"{path}.{key}" not in fold.mild}
    return Choice(registry.find(kind, name), cls, validate(cls.Config, options, path, fold.origins))


def _refuse_twice(key: str, chosen: Sequence[Choice], fold: Merged) -> None:
    """Raise `ConfigError` where a set holds one plugin under two names, its bare one and its qualified one."""
    meant = [choice.entry.qualified for choice in chosen]
    for name in meant:
        if meant.count(name) > 1:
            raise ConfigError(
                f"The {key} hold {name!r} twice.",
                where=fold.origins.get(key, ""),
                remedy="name it once; a second instance of one plugin is not possible",
            )


def _origin(origins: Mapping[str, str], path: str) -> str:
    """Return the origin of a value, or of the table that it was given in as a whole."""
    if path in origins:
        return origins[path]
    inside = [known for known in origins if known.startswith(f"{path}.")]
    return origins[inside[0]] if inside else "default"
