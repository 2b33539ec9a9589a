"""The commands as functions: `metaforge.train(...)` and `metaforge.load(folder)`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from metaforge.authoring.protocols import Options, TaskSpec
from metaforge.config.after_colon import parted
from metaforge.config.resolve import resolve
from metaforge.config.sources import SINGLES, Layer, file_layer
from metaforge.errors import ConfigError
from metaforge.registry.registry import Registry
from metaforge.registry.scan import scan
from metaforge.runs.run import Run
from metaforge.runs.run import load as load_run
from metaforge.runs.training import run_training


def train(
    learner: str | Mapping[str, Any],
    dataset: str | Mapping[str, Any] | None = None,
    *,
    backbone: str | Mapping[str, Any] | nn.Module | None = None,
    adapters: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    regularizers: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    optimizer: str | Mapping[str, Any] | None = None,
    schedule: str | Mapping[str, Any] | None = None,
    presets: Sequence[str] | None = None,
    hooks: Sequence[object] = (),
    config: Path | str | None = None,
    out: Path | str | None = None,
    steps: int | None = None,
    tasks: int | None = None,
    budget: float | str | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    init_from: Path | str | None = None,
    freeze: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Run:
    """Train a learner and return the run.

    This is `metaforge train` as a function. An argument that is None leaves its setting to `settings`, `config` and
    the defaults, in this order.

    Args:
        learner: Name of a learner plugin, or a mapping with its `name` and options.
        dataset: Name of a data set plugin, or a mapping with its `name` and options.
        backbone: Name of a backbone plugin (or `name:value`, see `Options`), a mapping with its `name` and options, any
            `nn.Module`, or `module:Class` of an importable class or function that takes no arguments and builds a
            module.
        adapters: Names of adapter plugins in the order of the chain, or a mapping from names to options.
        regularizers: Names of regularizer plugins, or a mapping from names to options.
        optimizer: Name of an optimiser plugin, or a mapping with its `name` and options.
        schedule: Name of a schedule plugin, or a mapping with its `name` and options.
        presets: Names of presets, of which the last applies.
        hooks: Objects with methods that are marked with `hookimpl`, in addition to the hooks of the configuration.
        config: Path of a run file (TOML).
        out: The run folder to create; by default a new folder below `runs`.
        steps: Number of outer steps.
        tasks: Number of tasks per outer step.
        budget: Time after which training stops, in seconds or as a string such as `"10m"`.
        lr: Learning rate of the outer optimiser.
        seed: Seed of the initial values, the training tasks and all noise.
        device: Device to train on: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        init_from: Folder of a run whose values are the initial ones, where names and shapes fit. `env.json` in the new
            folder records which were taken, and why the others were not.
        freeze: Patterns of the names of values that stay as they are, such as `"model.0.*"`.
        settings: Settings nested as in a run file, such as `{"task": {"ways": 20}}`.
        registry: The known plugins; by default those that are installed.

    Returns:
        The run: the trained values, with methods to evaluate and to apply the learner.

    Raises:
        ConfigError: A setting is unknown or invalid, or two components do not fit together.
        PluginError: A plugin is missing or broken, or its code or a hook raised an exception.
        DataError: The data set is missing, or too small for the tasks.
        DivergedError: The loss, the meta-gradient or a parameter became non-finite.
        StorageError: The run folder cannot be written.

    Example:
        `metaforge list-plugins` prints the names of the installed learners. This example registers a learner
        and a data set under names of its own.

        >>> import tempfile
        >>> import metaforge
        >>> from torch import nn
        >>> from metaforge.registry.scan import scan
        >>> from metaforge.testing.toy import ToyClasses, ToyLearner
        >>> registry = scan().with_plugin("learner", "my-learner", ToyLearner)
        >>> registry = registry.with_plugin("dataset", "my-data", ToyClasses)
        >>> network = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        >>> options = {"backbone": network, "adapters": ["sgd"], "steps": 1, "registry": registry}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = metaforge.train("my-learner", "my-data", out=f"{folder}/run", **options)
        >>> run.summary["outcome"], run.summary["steps"]
        ('finished', 1)
    """
    registry, name = _backbone(registry or scan(), backbone)
    components = {
        "learner": learner,
        "dataset": dataset,
        "backbone": name,
        "adapters": adapters,
        "regularizers": regularizers,
        "optimizer": optimizer,
        "schedule": schedule,
        "presets": None if presets is None else list(presets),
        "seed": seed,
        "device": device,
    }
    values: dict[str, Any] = {key: value for key, value in components.items() if value is not None}
    section: dict[str, Any] = {"steps": steps, "tasks": tasks, "budget": budget, "lr": lr}
    frozen = [freeze] if isinstance(freeze, str) else list(freeze)
    section |= {"init_from": None if init_from is None else str(init_from), "freeze": frozen or None}
    values["train"] = {key: value for key, value in section.items() if value is not None}
    layers = [file_layer(Path(config))] if config is not None else []
    layers += [Layer("settings", _for_named(settings or {}, values)), Layer("keyword", values)]
    resolved = resolve(layers, registry)
    folder = None if out is None else Path(out)
    return run_training(resolved, folder=folder, command="metaforge.train(...)", hooks=hooks)


def load(
    folder: Path | str,
    *,
    backbone: nn.Module | str | None = None,
    device: str | None = None,
    registry: Registry | None = None,
) -> Run:
    """Load a run from its folder, with the values of its latest valid checkpoint.

    Args:
        folder: The run folder.
        backbone: The `nn.Module` or `module:Class` that was passed to `train`, if one was: a run folder contains its
            parameters but not its code.
        device: Device to use the learner on; None means the device of the run's configuration.
        registry: The known plugins; by default those that are installed.

    Returns:
        The run, with methods to evaluate and to apply the learner.

    Raises:
        CheckpointError: There is no valid checkpoint, or it does not fit the run's learner.
        ConfigError: `folder` is not a run folder, or `backbone` cannot be built.
        PluginError: A plugin of the run is missing or broken.

    Example:
        >>> import tempfile
        >>> import metaforge
        >>> from torch import nn
        >>> from metaforge.registry.scan import scan
        >>> from metaforge.testing.toy import ToyClasses, ToyLearner
        >>> registry = scan().with_plugin("learner", "my-learner", ToyLearner)
        >>> registry = registry.with_plugin("dataset", "my-data", ToyClasses)
        >>> network = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        >>> options = {"backbone": network, "adapters": ["sgd"], "steps": 1, "registry": registry}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = metaforge.train("my-learner", "my-data", out=f"{folder}/run", **options)
        ...     loaded = metaforge.load(run.folder, backbone=network, registry=registry)
        >>> loaded.values.keys() == run.values.keys()
        True
    """
    wider, _ = _backbone(registry or scan(), backbone)
    return load_run(folder, wider, device=device)


def _for_named(settings: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings; a table of options without a `name` gets the name that the keyword argument has, if any."""
    made = dict(settings)
    for key in SINGLES:
        table, chosen = settings.get(key), keywords.get(key)
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if isinstance(table, Mapping) and "name" not in table and name is not None:
            made[key] = {"name": name, **table}
    return made


def _backbone(registry: Registry, backbone: Any) -> tuple[Registry, Any]:
    """Return a registry that contains the caller's own backbone, and the name of the backbone in it."""
    if isinstance(backbone, str) and ":" in backbone and not _names_plugin(registry, backbone):
        return _with_module(registry, backbone.partition(":")[2], module_maker(backbone))
    if isinstance(backbone, nn.Module):
        return _with_module(registry, type(backbone).__name__, lambda: backbone)
    return registry, backbone


def module_maker(path: str) -> Any:
    """Return the object that `module:Class` names.

    Raises `ConfigError` if it cannot be imported, or cannot be called without arguments.
    """
    module, _, attribute = path.partition(":")
    try:
        made = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise ConfigError(
            f"{path!r} cannot be imported: {type(error).__name__}: {error}.",
            where="backbone",
            remedy="write module:Class of a module that Python finds, or hand over the torch module itself",
        ) from error
    if not callable(made):
        raise ConfigError(
            f"{path!r} names nothing that builds a module.", where="backbone", remedy="write module:Class"
        )
    with contextlib.suppress(ValueError):  # Some classes written in C have no signature.
        try:
            signature(made).bind()
        except TypeError as error:
            raise ConfigError(
                f"{path!r} cannot be built without arguments: {error}.",
                where="backbone",
                remedy="name a class or function that needs none, or hand over the torch module itself",
            ) from error
    return made


def _names_plugin(registry: Registry, text: str) -> bool:
    """Return whether a text with a colon is the qualified name of a backbone, or a name with the value of an option."""
    is_name = any(entry.qualified == text for entry in registry.entries("backbone"))
    return is_name or parted(registry, "backbone", text) is not None


def _with_module(registry: Registry, name: str, make: Any) -> tuple[Registry, str]:
    class Own:
        """A backbone that was passed in Python code."""

        Config = Options
        reference = ""
        defaults: Mapping[Any, Any] = {}

        def __init__(self, config: Options) -> None:
            pass

        def build(self, spec: TaskSpec) -> nn.Module:
            """Return the caller's module."""
            module: nn.Module = make()
            return module

    return registry.with_plugin("backbone", f"own-{name.lower()}", Own), f"own-{name.lower()}"
