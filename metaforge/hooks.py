"""The hook specs: what happens during a run that a plugin may watch. Host side only, never inside a transform."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

from metaforge.errors import MetaForgeError, PluginError, nearest
from metaforge.hookcalls import Place, Trace, calling, wrapping

if TYPE_CHECKING:
    from metaforge.config import Resolved
    from metaforge.protocols import Task

Outcome = Literal["finished", "stopped", "failed"]

hookspec, hookimpl = pluggy.HookspecMarker("metaforge"), pluggy.HookimplMarker("metaforge")


@dataclass(frozen=True)
class RunInfo:
    """What a hook may know of its run: its resolved configuration, its command and the folder that keeps it.

    `folder` is None in a dry run, which keeps nothing. `environment` is what `env.json` says: the machine, the versions
    of all plugins, the engine's plan and chunk. `start` is the outer step after which this process continues: 0 in a
    new run; in a resumed one that of the checkpoint, and whatever the folder says of later steps is to be forgotten.
    """

    folder: Path | None
    config: Resolved
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0


@runtime_checkable
class Stateful(Protocol):
    """A plugin with hooks that remembers something over a resume; both methods are optional, but only together."""

    def state(self) -> Mapping[str, Any]:
        """Return what to remember, as values that JSON can hold; called after every step, kept with a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned, as JSON gives it back; called before a resumed run's `metaforge_run_start`."""
        ...


class Specs:
    """The eight hooks; an implementation may take fewer arguments than its spec."""

    @hookspec
    def metaforge_run_start(self, run: RunInfo) -> None:
        """A run begins: its folder exists and its configuration is written."""

    @hookspec
    def metaforge_before_step(self, run: RunInfo, step: int, tasks: Task) -> None:
        """Outer step `step` (from 1) is about to learn from a batch of tasks `[tasks, ...]`."""

    @hookspec
    def metaforge_after_step(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
        """Outer step `step` is done; `metrics` has these, and the learner's own figures.

        `loss`, `score` and `score_ci` are of all tasks since the last record in `metrics.jsonl` (`train.log_every`
        steps at most), so are the learner's own; a learner that gives no score has none. `tasks_per_second`, `elapsed`
        and `eta` (seconds) are of the whole run.
        """

    @hookspec
    def metaforge_after_eval(self, run: RunInfo, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """The learner was evaluated on a split after outer step `step`."""

    @hookspec(firstresult=True)
    def metaforge_should_stop(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Return True to end the run after this step, None to leave the question to the next hook.

        After a validation `metrics` has `val_score` and `val_score_ci` too.
        """

    @hookspec
    def metaforge_checkpoint(self, run: RunInfo, step: int, path: Path) -> None:
        """A checkpoint of outer step `step` was written at `path`; a dry run's is soon removed."""

    @hookspec
    def metaforge_run_end(self, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
        """The run has ended; this is called whatever happened before."""

    @hookspec
    def metaforge_run_facts(self, run: RunInfo) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Return facts to record with the run."""


def names() -> tuple[str, ...]:
    """Return the names of the hooks."""
    return tuple(name for name in vars(Specs) if name.startswith("metaforge_"))


def carriers(components: Iterable[object]) -> list[object]:
    """Return those components of a run that carry hooks of their own, in the order given."""
    return [component for component in components if any(_methods(component))]


def misfits(plugin: object) -> list[str]:
    """Return how the hooks of a plugin, an object or its class, do not fit the specs, each as a clause of a sentence.

    Each of these would otherwise be a hook that is never called, or called with less than it waits for.
    """
    found = []
    for name, options in _methods(plugin):
        hook = _hook(name, options)
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
        wrong = ["it is a class: hand over an object of it"] if inspect.isclass(plugin) else misfits(plugin)
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


def _methods(plugin: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def _hook(name: str, options: Mapping[str, Any]) -> str:
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


class _Named:
    """A plugin's hook implementations, whose exceptions name them; MetaForge's own errors are clear as they are."""

    def __init__(self, plugin: object, label: str, trace: Trace | None) -> None:
        for name, options in _methods(plugin):
            place = Place(type(plugin), _hook(name, options), label, trace)
            make = wrapping if options.get("wrapper") else calling
            setattr(self, name, make(getattr(plugin, name), place))
