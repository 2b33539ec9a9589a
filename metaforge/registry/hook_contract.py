"""Whether the hooks of a plugin fit the hook specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from metaforge.authoring.hooks import Specs, names
from metaforge.errors import nearest

if TYPE_CHECKING:
    pass


def with_hooks(components: Iterable[object]) -> list[object]:
    """Return those components of a run that carry hooks of their own, in the order given."""
    return [component for component in components if any(hook_methods(component))]


def misfits(plugin: object) -> list[str]:
    """Return how the hooks of a plugin, an object or its class, do not fit the specs, each as a clause of a sentence.

    Each of these would otherwise be a hook that is never called, or called with less than it waits for.
    """
    found = []
    for name, options in hook_methods(plugin):
        hook = hook_name(name, options)
        if hook not in names():
            if not options.get("optionalhook"):
                near = nearest(hook, names()).strip()
                found.append(f"there is no hook {hook!r}" + (f" ({near})" if near else ""))
        elif not options:
            found.append(f"{name!r} is not marked with @metaforge.hookimpl")
        else:
            found += _signature_misfits(plugin, name, hook)
            found += _manner_misfits(getattr(plugin, name), name, options)
    return found


def hook_methods(plugin: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the methods that are hooks, or look like one, with the options of their mark (empty: it has none)."""
    for name in dir(plugin):
        # Looked up without asking: a property of a data set, say, may be dear or raise.
        method = inspect.getattr_static(plugin, name, None)
        method = method.__func__ if isinstance(method, (staticmethod, classmethod)) else method
        options = getattr(method, "metaforge_impl", None) if inspect.isroutine(method) else None
        if isinstance(options, Mapping):
            yield name, options
        elif name.startswith("metaforge_") and inspect.isroutine(method):
            yield name, {}


def hook_name(name: str, options: Mapping[str, Any]) -> str:
    return options.get("specname") or name


def _signature_misfits(plugin: object, name: str, hook: str) -> list[str]:
    known = list(inspect.signature(getattr(Specs, hook)).parameters)[1:]
    parameters = list(inspect.signature(getattr(plugin, name)).parameters.values())
    if inspect.isclass(plugin) and inspect.isfunction(inspect.getattr_static(plugin, name)):
        del parameters[:1]
    found = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            found.append(f"{name} collects arguments with *, which are never given: name those wanted")
        elif parameter.name not in known and parameter.default is parameter.empty:
            found.append(f"{name} asks for {parameter.name!r}, which is none of {', '.join(known)}")
        elif parameter.name in known and parameter.kind is parameter.KEYWORD_ONLY:
            found.append(f"{name} takes {parameter.name!r} by keyword only, which is never given so")
        elif parameter.name in known and parameter.default is not parameter.empty:
            found.append(f"{name} has a default for {parameter.name!r}, which hides that it is given")
    return found


def _manner_misfits(method: Callable[..., Any], name: str, options: Mapping[str, Any]) -> list[str]:
    if options.get("hookwrapper"):
        return [f"{name} is a wrapper of the old kind: mark it with hookimpl(wrapper=True)"]
    if options.get("wrapper"):
        return [] if inspect.isgeneratorfunction(method) else [f"{name} is marked as a wrapper and does not yield"]
    if inspect.isgeneratorfunction(method) or inspect.iscoroutinefunction(method):
        return [f"{name} is a generator or a coroutine, which nobody would run"]
    return []
