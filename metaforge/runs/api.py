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
    hooks: Sequence[object] = (),
    config: Path | str | None = None,
    out: Path | str | None = None,
    steps: int | None = None,
    tasks: int | None = None,
    budget: float | str | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Run:
    """Train a learner and return the run.

    A component is a name, or a table of its options with `name` among them; `backbone` may also be any `nn.Module`, or
    `module:Class` of the caller's own. `settings` nests like a run file, e.g. `{"task": {"ways": 20}}`; where both
    speak of a value, the keyword is right.
    """
    registry, name = _backbone(registry or scan(), backbone)
    components = {
        "learner": learner,
        "dataset": dataset,
        "backbone": name,
        "adapters": adapters,
        "regularizers": regularizers,
        "seed": seed,
        "device": device,
    }
    values: dict[str, Any] = {key: value for key, value in components.items() if value is not None}
    section = {"steps": steps, "tasks": tasks, "budget": budget, "lr": lr}
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
    """Return the run of a folder; a run with a backbone of the caller's own needs it again.

    `device` is where to use it, whatever it was trained on; None means the device of its configuration.
    """
    wider, _ = _backbone(registry or scan(), backbone)
    return load_run(folder, wider, device=device)


def _for_named(settings: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which options without a plugin's name are meant for the one that a keyword names."""
    made = dict(settings)
    for key in SINGLES:
        table, chosen = settings.get(key), keywords.get(key)
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if isinstance(table, Mapping) and "name" not in table and name is not None:
            made[key] = {"name": name, **table}
    return made


def _backbone(registry: Registry, backbone: Any) -> tuple[Registry, Any]:
    """Return a registry that knows the caller's own backbone, and the name it has there."""
    if isinstance(backbone, str) and ":" in backbone and not _installed(registry, backbone):
        return _with_module(registry, backbone.partition(":")[2], _maker(backbone))
    if isinstance(backbone, nn.Module):
        return _with_module(registry, type(backbone).__name__, lambda: backbone)
    return registry, backbone


def _maker(path: str) -> Any:
    """Return what `module:Class` names; `ConfigError` if that cannot be imported, or called without arguments."""
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
    with contextlib.suppress(ValueError):  # Some classes of C have no signature to ask.
        try:
            signature(made).bind()
        except TypeError as error:
            raise ConfigError(
                f"{path!r} cannot be built without arguments: {error}.",
                where="backbone",
                remedy="name a class or function that needs none, or hand over the torch module itself",
            ) from error
    return made


def _installed(registry: Registry, name: str) -> bool:
    return any(entry.qualified == name for entry in registry.entries("backbone"))


def _with_module(registry: Registry, name: str, make: Any) -> tuple[Registry, str]:
    class Own:
        """A backbone handed over in Python."""

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
