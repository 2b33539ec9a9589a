"""Call the hooks of a run in order; errors name the plugin, and calls are traced on request."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pluggy

from metaforge.authoring.hooks import Outcome, RunInfo, Specs, Stateful, names
from metaforge.errors import MetaForgeError, PluginError
from metaforge.registry.hook_contract import hook_errors, hook_methods, hook_name
from metaforge.system.streams import note_stream, reopen_descriptors


class Trace:
    """Prints each hook call on stderr: the hook, the step, and every plugin that is called, with its time in ms."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.calls: list[str] = []
        manager.add_hookcall_monitoring(lambda *call: self.calls.clear(), self.print_call)

    def print_call(self, outcome: object, hook: str, plugins: Sequence[object], arguments: Mapping[str, Any]) -> None:
        """Print one line about a call that has returned."""
        step = f" at step {arguments['step']}" if "step" in arguments else ""
        print(f"{hook}{step}: {', '.join(self.calls) or 'no plugin'}", file=note_stream())


@dataclass(frozen=True)
class HookCall:
    """A call of one hook of one plugin, for reporting its errors and its time.

    Attributes:
        cls: The class of the plugin.
        hook: The name of the hook.
        label: The name of the plugin in a trace.
        trace: Where the time of the call is recorded; None if calls are not traced.
    """

    cls: type[Any]
    hook: str
    label: str = ""
    trace: Trace | None = None

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn exceptions of the hook, which is called inside, into `PluginError`; MetaForge's own errors pass through.

        The time of a wrapper includes the time of the calls that it wraps.
        """
        start = time.perf_counter()
        try:
            yield
        except (MetaForgeError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise PluginError(
                f"The hook {self.hook} of {self.cls.__name__} raised {type(error).__name__}: {error}",
                where=f"{self.cls.__module__}:{self.cls.__qualname__}",
                remedy="run without this hook, or fix it (METAFORGE_DEBUG=1 shows the traceback)",
            ) from error
        finally:
            # A hook may have closed stderr or stdout.
            reopen_descriptors()
            if self.trace is not None:
                self.trace.calls.append(f"{self.label} {1e3 * (time.perf_counter() - start):.2f} ms")


def plain_hook(method: Callable[..., Any], hook_call: HookCall) -> Callable[..., Any]:
    """Return a hook implementation whose errors name its plugin."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        with hook_call.reported():
            result = method(*arguments)
            if hook_call.hook == "metaforge_run_facts" and not isinstance(result, Mapping | None):
                raise TypeError(f"it returned {result!r} instead of a mapping of facts")
            return result

    return call


def wrapper_hook(method: Callable[..., Any], hook_call: HookCall) -> Callable[..., Any]:
    """Return a hook wrapper (a generator that yields once) whose errors name its plugin."""

    @functools.wraps(method)
    def call(*arguments: Any) -> Generator[None, Any, Any]:
        with hook_call.reported():
            wrapper = method(*arguments)
            try:
                next(wrapper)
            except StopIteration:
                raise TypeError("a wrapper must yield once") from None
            try:
                result = yield
            except BaseException as error:
                finish = functools.partial(wrapper.throw, error)
            else:
                finish = functools.partial(wrapper.send, result)
            try:
                finish()
            except StopIteration as end:
                return end.value
            wrapper.close()
            raise TypeError("a wrapper must yield once")

    return call


class _ReportedHooks:
    """The hook implementations of a plugin, each wrapped so that its errors name the plugin."""

    def __init__(self, plugin: object, label: str, trace: Trace | None) -> None:
        for name, options in hook_methods(plugin):
            hook_call = HookCall(type(plugin), hook_name(name, options), label, trace)
            wrap = wrapper_hook if options.get("wrapper") else plain_hook
            setattr(self, name, wrap(getattr(plugin, name), hook_call))


def hook_manager(plugins: Sequence[object]) -> pluggy.PluginManager:
    """Return a hook manager for one run that calls the plugins in the order given.

    With METAFORGE_TRACE_HOOKS=1 every call is printed on stderr.

    Raises:
        PluginError: A plugin implements a hook that does not exist, or takes an argument that the hook does not have.
            Exceptions in the hooks become a `PluginError` when they are called.
    """
    manager = pluggy.PluginManager("metaforge")
    manager.add_hookspecs(Specs)
    trace = Trace(manager) if os.environ.get("METAFORGE_TRACE_HOOKS") == "1" else None
    # pluggy calls plugins in the reverse order of their registration.
    for number, plugin in reversed(list(enumerate(plugins, start=1))):
        problems = ["it is a class: pass an instance of it"] if inspect.isclass(plugin) else hook_errors(plugin)
        try:
            if not problems:
                label = f"{type(plugin).__name__} ({number})"
                manager.register(_ReportedHooks(plugin, label, trace), name=label)
        except pluggy.PluginValidationError as error:
            problems = [str(error)]
        if problems:
            cls = plugin if inspect.isclass(plugin) else type(plugin)
            raise PluginError(
                f"The hook plugin {cls.__name__} does not fit the hook specs: {'; '.join(problems)}",
                where=f"{cls.__module__}:{cls.__qualname__}",
                remedy=f"the hooks are {', '.join(names())}",
            )
    manager.check_pending()
    return manager


def run_facts(manager: pluggy.PluginManager, run: RunInfo) -> dict[str, dict[str, str]]:
    """Return `{"facts": ...}` with what `metaforge_run_facts` of the plugins returns, `{}` if that is nothing."""
    facts = {str(name): str(x) for found in manager.hook.metaforge_run_facts(run=run) for name, x in found.items()}
    return {"facts": facts} if facts else {}


def end_run(manager: pluggy.PluginManager, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
    """Call `metaforge_run_end` of every plugin, even if one of them raises; raise the first error afterwards."""
    errors: list[MetaForgeError] = []
    implementations = reversed(manager.hook.metaforge_run_end.get_hookimpls())
    # A plugin that implements the hook twice is still called once.
    for plugin in dict.fromkeys(implementation.plugin for implementation in implementations):
        others = [other for other in manager.get_plugins() if other is not plugin]
        try:
            manager.subset_hook_caller("metaforge_run_end", others)(run=run, outcome=outcome, error=error)
        except MetaForgeError as failure:
            errors.append(failure)
    if errors:
        raise errors[0]


def states(plugins: Mapping[str, object]) -> dict[str, Mapping[str, Any]]:
    """Return copies of the states of those plugins (by name) that have one; `PluginError` names one that fails.

    They are copied after every step, because a checkpoint may be written later. Whether JSON can represent them is
    checked only when they are saved.
    """
    found = {}
    for name, plugin in plugins.items():
        if isinstance(plugin, Stateful):
            with HookCall(type(plugin), "state").reported():
                found[name] = copy.deepcopy(plugin.state())
    return found


def restore_states(plugins: Mapping[str, object], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Restore the states that plugins (by name) had when they were saved; `PluginError` names one that fails."""
    for name, plugin in plugins.items():
        if isinstance(plugin, Stateful) and name in saved:
            with HookCall(type(plugin), "restore").reported():
                plugin.restore(saved[name])
