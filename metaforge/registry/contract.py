"""Whether a class keeps the contract of its kind of plugin: the members and parameter names of its protocol."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel

from metaforge.authoring import hooks, protocols
from metaforge.authoring.protocols import Hook
from metaforge.registry.hook_contract import misfits, with_hooks

_PROTOCOLS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "learner": protocols.Learner,
        "adapter": protocols.Adapter,
        "regularizer": protocols.Regularizer,
        "backbone": protocols.Backbone,
        "dataset": protocols.Dataset,
        "hook": Hook,
    }
)

# What a class must write itself: the protocol's version is a stub, not a default.
_REQUIRED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "learner": ("init", "adapt", "predict", "loss"),
        "adapter": ("update",),
        "backbone": ("build",),
        "dataset": ("spec", "sample", "facts"),
    }
)

_SINGLE = ("learner", "backbone", "dataset")


def faults(kind: str, cls: type[Any]) -> list[str]:
    """Return what a class lacks to be a plugin of this kind, each as a clause of a sentence."""
    protocol = _PROTOCOLS[kind]
    found = _config_faults(kind, cls) + _fact_faults(kind, cls)
    for name in _members(protocol):
        stub = name in _REQUIRED.get(kind, ()) and getattr(cls, name, None) is getattr(protocol, name, None)
        if stub or not hasattr(cls, name):
            found.append(f"{name!r} is missing")
        elif inspect.isfunction(getattr(protocol, name, None)):
            found += _signature_faults(name, getattr(protocol, name), getattr(cls, name))
    if "__init__" in vars(protocol) and cls.__init__ is not getattr(protocol, "__init__"):  # noqa: B009
        found += _signature_faults("__init__", getattr(protocol, "__init__"), cls.__init__)  # noqa: B009
    if kind == "hook" and not with_hooks([cls]):
        found.append(f"it has none of the hooks {', '.join(hooks.names())}")
    if kind == "hook":
        found += _memory_faults(cls)
    return [*found, *misfits(cls)]


def _memory_faults(cls: type[Any]) -> list[str]:
    """Return how the two optional methods of a hook plugin that remembers something do not belong together."""
    has = [name for name in ("state", "restore") if callable(getattr(cls, name, None))]
    if len(has) == 1:
        return [f"it has {has[0]!r} without {'restore' if has == ['state'] else 'state'!r}"]
    return [
        fault for name in has for fault in _signature_faults(name, getattr(hooks.Stateful, name), getattr(cls, name))
    ]


def _config_faults(kind: str, cls: type[Any]) -> list[str]:
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return ["'Config' is not a pydantic model (inherit from metaforge.authoring.protocols.Options)"]
    found = []
    if config.model_config.get("extra") != "forbid":
        found.append("'Config' accepts unknown options (inherit from metaforge.authoring.protocols.Options)")
    if kind in _SINGLE and "name" in config.model_fields:
        found.append("'Config' has an option 'name', which in a run file chooses the plugin")
    return found


def _fact_faults(kind: str, cls: type[Any]) -> list[str]:
    """Return which facts about itself a class gives in a form that nothing can be done with."""
    found = []
    if not isinstance(getattr(cls, "reference", ""), str):
        found.append("'reference' is not a text")
    defaults = getattr(cls, "defaults", {})
    if not (isinstance(defaults, Mapping) and all(isinstance(one, Mapping) for one in defaults.values())):
        found.append("'defaults' is not a mapping from kinds of task to settings")
    if kind == "learner" and not isinstance(getattr(cls, "tags", None), protocols.Tags):
        found.append("'tags' are not of type metaforge.authoring.protocols.Tags")
    if kind == "dataset" and getattr(cls, "kind", "") not in get_args(protocols.Kind):
        found.append(f"'kind' is not one of {', '.join(get_args(protocols.Kind))}")
    return found


def _members(protocol: type[Any]) -> list[str]:
    names: dict[str, None] = {}
    for base in protocol.__mro__:
        if base.__module__.startswith(protocols.__name__):
            names |= dict.fromkeys([*inspect.get_annotations(base), *vars(base)])
    return [name for name in names if not name.startswith("_") and name not in ("Config",)]


def _signature_faults(name: str, contract: Any, method: Any) -> list[str]:
    """Return how a method cannot be called as its contract says."""
    if not callable(method):
        return [f"{name!r} is not a method"]
    try:
        has = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return []
    wanted = list(inspect.signature(contract).parameters.values())
    kinds = {parameter.kind for parameter in has}
    positional = [parameter.name for parameter in has if parameter.kind in _POSITIONAL]
    expected = [parameter.name for parameter in wanted if parameter.kind in _POSITIONAL]
    found = []
    if inspect.Parameter.VAR_POSITIONAL not in kinds and positional[: len(expected)] != expected:
        found.append(f"{name}({', '.join(positional)}) should begin ({', '.join(expected)})")
    named = {parameter.name for parameter in has}
    for parameter in wanted:
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in named
        if keyword and inspect.Parameter.VAR_KEYWORD not in kinds:
            found.append(f"{name} lacks the keyword {parameter.name!r}")
    known = {parameter.name for parameter in wanted} | set(positional[: len(expected)])
    for parameter in has:
        asked = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        if asked and parameter.name not in known:
            found.append(f"{name} asks for {parameter.name!r}, which is never given")
    return found


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
