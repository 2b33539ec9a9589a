"""Whether the hook methods of a plugin match the hook specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from metaforge.authoring.hooks import Specs, names
from metaforge.errors import nearest


def with_hooks(components: Iterable[object]) -> list[object]:
    """Return those of a run's components that have hook methods, in the same order."""
    return [component for component in components if any(hook_methods(component))]


def hook_errors(plugin: object) -> list[str]:
    """Return how the hook methods of a plugin, an instance or a class, do not match the specs.

    Each error is a clause of a sentence. pluggy itself would not report these: the method would never be called, or
    would be called without an argument that it needs.
    """
    errors = []
    for name, options in hook_methods(plugin):
        hook = hook_name(name, options)
        if hook not in names():
            if not options.get("optionalhook"):
                hint = nearest(hook, names()).strip()
                errors.append(f"there is no hook {hook!r}" + (f" ({hint})" if hint else ""))
        elif not options:
            errors.append(f"{name!r} is not marked with @metaforge.hookimpl")
        else:
            errors += _parameter_errors(plugin, name, hook)
            errors += _generator_errors(getattr(plugin, name), name, options)
    return errors


def hook_methods(plugin: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name of each hook method and the options of its `@hookimpl` mark.

    A method named `metaforge_...` without a mark is yielded too, with no options: the mark was forgotten.
    """
    for name in dir(plugin):
        # `getattr_static` does not evaluate properties, which may be slow or raise.
        method = inspect.getattr_static(plugin, name, None)
        method = method.__func__ if isinstance(method, (staticmethod, classmethod)) else method
        options = getattr(method, "metaforge_impl", None) if inspect.isroutine(method) else None
        if isinstance(options, Mapping):
            yield name, options
        elif name.startswith("metaforge_") and inspect.isroutine(method):
            yield name, {}


def hook_name(name: str, options: Mapping[str, Any]) -> str:
    """Return the hook that a method implements: its `specname`, or its own name."""
    return options.get("specname") or name


def _parameter_errors(plugin: object, name: str, hook: str) -> list[str]:
    """Return which parameters of a method the hook does not pass as the method expects."""
    passed = list(inspect.signature(getattr(Specs, hook)).parameters)[1:]
    parameters = list(inspect.signature(getattr(plugin, name)).parameters.values())
    if inspect.isclass(plugin) and inspect.isfunction(inspect.getattr_static(plugin, name)):
        del parameters[:1]  # A function of a class still has its `self`.
    errors = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            errors.append(f"{name} collects arguments with * or **, which pluggy never fills: name each argument")
        elif parameter.name not in passed and parameter.default is parameter.empty:
            errors.append(f"{name} needs {parameter.name!r}, which is none of {', '.join(passed)}")
        elif parameter.name in passed and parameter.kind is parameter.KEYWORD_ONLY:
            errors.append(f"{name} takes {parameter.name!r} by keyword only, but hooks are called by position")
        elif parameter.name in passed and parameter.default is not parameter.empty:
            errors.append(f"{name} has a default for {parameter.name!r}, which prevents pluggy from passing it")
    return errors


def _generator_errors(method: Callable[..., Any], name: str, options: Mapping[str, Any]) -> list[str]:
    """Return whether a wrapper is not a generator function, or another hook method is one."""
    if options.get("hookwrapper"):
        return [f"{name} is an old-style wrapper: mark it with hookimpl(wrapper=True)"]
    if options.get("wrapper"):
        return [] if inspect.isgeneratorfunction(method) else [f"{name} is marked as a wrapper and does not yield"]
    if inspect.isgeneratorfunction(method) or inspect.iscoroutinefunction(method):
        return [f"{name} is a generator or a coroutine, whose body would never run"]
    return []
