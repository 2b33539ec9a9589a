"""Hooks as the manager calls them: an exception names its plugin and hook, and a trace tells every call."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pluggy

from metaforge.authoring.hooks import Outcome, RunInfo, Specs, Stateful, names
from metaforge.errors import MetaForgeError, PluginError
from metaforge.registry.hook_contract import hook_errors, hook_methods, hook_name


class Trace:
    """Tells every hook call on stderr: the hook, its step, and each plugin that was asked, with its milliseconds."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.asked: list[str] = []
        manager.add_hookcall_monitoring(lambda *call: self.asked.clear(), self.tell)

    def tell(self, outcome: object, hook: str, plugins: Sequence[object], given: Mapping[str, Any]) -> None:
        """Print one line of a call that is over."""
        step = f" at step {given['step']}" if "step" in given else ""
        print(f"{hook}{step}: {', '.join(self.asked) or 'nobody asked'}", file=sys.stderr)  # noqa: T201


@dataclass(frozen=True)
class Place:
    """Where a hook stands: what its exceptions and its time are noted under."""

    cls: type[Any]
    hook: str
    label: str = ""
    trace: Trace | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Run a hook inside; a wrapper's time is that of all it wraps, too."""
        start = time.perf_counter()
        try:
            yield
        except MetaForgeError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"The hook {self.hook} of {self.cls.__name__} raised {type(error).__name__}: {error}",
                where=f"{self.cls.__module__}:{self.cls.__qualname__}",
                remedy="run without this hook, or correct it (METAFORGE_DEBUG=1 shows the trace)",
            ) from error
        finally:
            if self.trace is not None:
                self.trace.asked.append(f"{self.label} {1e3 * (time.perf_counter() - start):.2f} ms")


def calling(method: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """Return a plain hook that is noted."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        with place.noted():
            answer = method(*arguments)
            if place.hook == "metaforge_run_facts" and not isinstance(answer, Mapping | None):
                raise TypeError(f"it returned {answer!r}, which is no mapping of facts")
            return answer

    return call


def wrapping(method: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """Return a hook that wraps others, noted; it sees what they answer or raise, and raises what it does not catch."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Generator[None, Any, Any]:
        with place.noted():
            inner = method(*arguments)
            try:
                next(inner)
            except StopIteration:
                raise TypeError("a wrapper has to yield once") from None
            try:
                answer = yield
            except BaseException as error:
                resume = functools.partial(inner.throw, error)
            else:
                resume = functools.partial(inner.send, answer)
            try:
                resume()
            except StopIteration as end:
                return end.value
            inner.close()
            raise TypeError("a wrapper has to yield once")

    return call


def hook_manager(plugins: Sequence[object]) -> pluggy.PluginManager:
    """Return a manager of this run's own, which calls the plugins in the order given.

    Raises `PluginError` where a plugin implements a hook that does not exist, or asks for an argument unknown to it. An
    exception in a hook surfaces as a `PluginError` too, which names the plugin and the hook. With
    METAFORGE_TRACE_HOOKS=1 every call is told on stderr.
    """
    manager = pluggy.PluginManager("metaforge")
    manager.add_hookspecs(Specs)
    trace = Trace(manager) if os.environ.get("METAFORGE_TRACE_HOOKS") == "1" else None
    # pluggy calls the last one registered first.
    for number, plugin in reversed(list(enumerate(plugins, start=1))):
        wrong = ["it is a class: hand over an object of it"] if inspect.isclass(plugin) else hook_errors(plugin)
        try:
            if not wrong:
                label = f"{type(plugin).__name__} ({number})"
                manager.register(_Named(plugin, label, trace), name=label)
        except pluggy.PluginValidationError as error:
            wrong = [str(error)]
        if wrong:
            cls = plugin if inspect.isclass(plugin) else type(plugin)
            raise PluginError(
                f"The hook plugin {cls.__name__} does not fit the hook specs: {'; '.join(wrong)}",
                where=f"{cls.__module__}:{cls.__qualname__}",
                remedy=f"the hooks are {', '.join(names())}",
            )
    manager.check_pending()
    return manager


def end_run(manager: pluggy.PluginManager, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
    """Call every plugin's `metaforge_run_end`, whatever another one raises; raise the first exception afterwards."""
    raised: list[MetaForgeError] = []
    endings = reversed(manager.hook.metaforge_run_end.get_hookimpls())
    # One that implements it twice is still called once.
    for plugin in dict.fromkeys(ending.plugin for ending in endings):
        others = [one for one in manager.get_plugins() if one is not plugin]
        try:
            manager.subset_hook_caller("metaforge_run_end", others)(run=run, outcome=outcome, error=error)
        except MetaForgeError as caught:
            raised.append(caught)
    if raised:
        raise raised[0]


def states(plugins: Mapping[str, object]) -> dict[str, Mapping[str, Any]]:
    """Return what plugins, by name, want to remember over a resume; a `PluginError` names one that cannot say it."""
    found = {}
    for name, plugin in plugins.items():
        if isinstance(plugin, Stateful):
            with Place(type(plugin), "state").noted():
                found[name] = json.loads(json.dumps(plugin.state(), allow_nan=False))
    return found


def restore_states(plugins: Mapping[str, object], remembered: Mapping[str, Mapping[str, Any]]) -> None:
    """Give plugins back what they wanted to remember; a `PluginError` names one that cannot take it up."""
    for name, plugin in plugins.items():
        if isinstance(plugin, Stateful) and name in remembered:
            with Place(type(plugin), "restore").noted():
                plugin.restore(remembered[name])


class _Named:
    """A plugin's hook implementations, whose exceptions name them; MetaForge's own errors are clear as they are."""

    def __init__(self, plugin: object, label: str, trace: Trace | None) -> None:
        for name, options in hook_methods(plugin):
            place = Place(type(plugin), hook_name(name, options), label, trace)
            make = wrapping if options.get("wrapper") else calling
            setattr(self, name, make(getattr(plugin, name), place))
