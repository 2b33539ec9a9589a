"""Whether a class keeps the contract of its kind of plugin: the members and the parameter names of its protocol."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from metaforge.authoring import hooks, protocols
from metaforge.authoring.kinds import KINDS, TaskKind
from metaforge.authoring.protocols import Hook, Preset
from metaforge.registry.hook_contract import hook_errors, with_hooks

_PROTOCOLS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "learner": protocols.Learner,
        "adapter": protocols.Adapter,
        "regularizer": protocols.Regularizer,
        "backbone": protocols.Backbone,
        "dataset": protocols.Dataset,
        "optimizer": protocols.Optimizer,
        "schedule": protocols.Schedule,
        "hook": Hook,
        "preset": Preset,
    }
)
# The methods that a class must define itself: the protocol's own version is a stub, not a default.
_REQUIRED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "learner": ("init", "adapt", "predict", "loss"),
        "adapter": ("update",),
        "backbone": ("build",),
        "dataset": ("spec", "sample", "facts"),
        "optimizer": ("build",),
        "schedule": ("factor",),
    }
)
# The kinds of which a run has one plugin: its table in a run file has the key `name` beside the options.
_SINGLE = ("learner", "backbone", "dataset", "optimizer", "schedule")
# The kinds whose hook methods a run calls.
_WITH_HOOKS = ("learner", "dataset", "regularizer", "hook")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def contract_errors(kind: str, cls: type[Any]) -> list[str]:
    """Return why a class cannot be a plugin of a kind, each error as a clause of a sentence; empty if it can."""
    protocol = _PROTOCOLS[kind]
    errors = _config_errors(kind, cls) + _attribute_errors(kind, cls)
    for name in _members(protocol):
        is_stub = name in _REQUIRED.get(kind, ()) and getattr(cls, name, None) is getattr(protocol, name, None)
        if is_stub or not hasattr(cls, name):
            errors.append(f"{name!r} is missing")
        elif inspect.isroutine(getattr(protocol, name, None)):
            errors += _signature_errors(name, getattr(protocol, name), getattr(cls, name))
    if "__init__" in vars(protocol) and cls.__init__ is not getattr(protocol, "__init__"):  # noqa: B009
        errors += _signature_errors("__init__", getattr(protocol, "__init__"), cls.__init__)  # noqa: B009
    hooked = bool(with_hooks([cls]))
    if kind == "hook" and not hooked:
        errors.append(f"it has none of the hooks {', '.join(hooks.names())}")
    if kind not in _WITH_HOOKS and hooked:
        errors.append(f"a run calls the hooks of a {', '.join(_WITH_HOOKS[:-1])} or {_WITH_HOOKS[-1]} plugin only")
    if kind == "hook":
        errors += _state_errors(cls)
    return [*errors, *hook_errors(cls)]


def _config_errors(kind: str, cls: type[Any]) -> list[str]:
    """Return what is wrong with the `Config` of a plugin, the model of its options."""
    config = getattr(cls, "Config", None)
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        return ["'Config' is not a pydantic model (inherit from metaforge.authoring.Options)"]
    errors = []
    if config.model_config.get("extra") != "forbid":
        errors.append("'Config' accepts unknown options (inherit from metaforge.authoring.Options)")
    if kind in _SINGLE and "name" in config.model_fields:
        errors.append("'Config' has an option 'name', but in a run file 'name' chooses the plugin")
    if (option := getattr(config, "after_colon", "")) and option not in config.model_fields:
        errors.append(f"'Config.after_colon' is {option!r}, which is none of its options")
    return errors


def _attribute_errors(kind: str, cls: type[Any]) -> list[str]:
    """Return which class attributes of a plugin have a wrong type or value."""
    errors = []
    if not isinstance(getattr(cls, "reference", ""), str):
        errors.append("'reference' is not a string")
    defaults = getattr(cls, "defaults", {})
    if not (isinstance(defaults, Mapping) and all(isinstance(settings, Mapping) for settings in defaults.values())):
        errors.append("'defaults' is not a mapping from kinds of task to settings")
    expected = {"learner": protocols.Tags, "adapter": protocols.AdapterTags}.get(kind)
    if expected is not None and not isinstance(getattr(cls, "tags", None), expected):
        errors.append(f"'tags' is not of type metaforge.authoring.{expected.__name__}")
    # A property, if the terms depend on the options.
    if kind == "regularizer" and not isinstance(getattr(cls, "terms", frozenset()), (frozenset, property)):
        errors.append("'terms' is not a frozenset of names")
    if kind == "dataset":
        errors += _kind_errors(getattr(cls, "kind", None))
    if kind == "backbone" and _is_pretrained(cls) and not callable(getattr(cls, "pretrained", None)):
        errors.append("'pretrained' is missing, which its 'Config' offers")
    if kind == "preset" and not isinstance(getattr(cls, "settings", None), Mapping):
        errors.append("'settings' is not a mapping of settings, nested as in a run file")
    if kind == "optimizer" and not _is_weight_decay(getattr(cls, "weight_decay", None)):
        errors.append("'weight_decay' is not a finite number of at least 0")
    if kind == "schedule" and not isinstance(getattr(cls, "uses_share", None), bool):
        errors.append("'uses_share' is not True or False")
    return errors


def _is_pretrained(cls: type[Any]) -> bool:
    config = getattr(cls, "Config", None)
    return isinstance(config, type) and issubclass(config, protocols.PretrainedOptions)


def _is_weight_decay(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _kind_errors(kind: Any) -> list[str]:
    """Return what is wrong with the kind of task of a data set."""
    if isinstance(kind, TaskKind) and kind.name in KINDS and kind != KINDS[kind.name]:
        return [f"'kind' has the name of the built-in kind {kind.name!r}"]
    if isinstance(kind, TaskKind) or (isinstance(kind, str) and kind in KINDS):
        return []
    return [f"'kind' is not one of {', '.join(KINDS)}, nor a metaforge.authoring.TaskKind"]


def _members(protocol: type[Any]) -> list[str]:
    """Return the public members of a protocol, `Config` aside."""
    names: dict[str, None] = {}
    for base in protocol.__mro__:
        if base.__module__.startswith(protocols.__name__):
            names |= dict.fromkeys([*inspect.get_annotations(base), *vars(base)])
    return [name for name in names if not name.startswith("_") and name != "Config"]


def _state_errors(cls: type[Any]) -> list[str]:
    """Return what is wrong with `state` and `restore`, which a hook plugin has both or neither of."""
    defined = [name for name in ("state", "restore") if callable(getattr(cls, name, None))]
    if len(defined) == 1:
        return [f"it has {defined[0]!r} without {'restore' if defined == ['state'] else 'state'!r}"]
    return [
        error
        for name in defined
        for error in _signature_errors(name, getattr(hooks.Stateful, name), getattr(cls, name))
    ]


def _signature_errors(name: str, contract: Any, method: Any) -> list[str]:
    """Return why a method cannot be called in the way of the protocol's method `contract`."""
    if not callable(method):
        return [f"{name!r} is not a method"]
    try:
        parameters = list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):
        return []
    expected = list(inspect.signature(contract).parameters.values())
    kinds = {parameter.kind for parameter in parameters}
    positional = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
    expected_positional = [parameter.name for parameter in expected if parameter.kind in _POSITIONAL]
    count = len(expected_positional)
    errors = []
    if inspect.Parameter.VAR_POSITIONAL not in kinds and positional[:count] != expected_positional:
        errors.append(f"{name}({', '.join(positional)}) should begin ({', '.join(expected_positional)})")
    names = {parameter.name for parameter in parameters}
    for parameter in expected:
        is_missing = parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in names
        if is_missing and inspect.Parameter.VAR_KEYWORD not in kinds:
            errors.append(f"{name} lacks the keyword {parameter.name!r}")
    # A parameter in the place of an expected one has a wrong name, which the first error reports.
    passed = {parameter.name for parameter in expected} | set(positional[:count])
    for parameter in parameters:
        is_required = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        if is_required and parameter.name not in passed:
            errors.append(f"{name} needs {parameter.name!r}, which MetaForge does not pass")
    return errors
