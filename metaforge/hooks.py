"""The hook specs: what happens during a run that a plugin may watch. Host side only, never inside a transform."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from metaforge.errors import MetaForgeError, PluginError

if TYPE_CHECKING:
    from metaforge.config import Resolved
    from metaforge.protocols import Task

Outcome = Literal["finished", "stopped", "failed"]

hookspec = pluggy.HookspecMarker("metaforge")


@dataclass(frozen=True)
class RunInfo:
    """What a hook may know of its run: its resolved configuration, its command and the folder that keeps it.

    `folder` is None in a dry run, which keeps nothing. `environment` is what `env.json` says: the machine, the versions
    of all plugins, the engine's plan and chunk.
    """

    folder: Path | None
    config: Resolved
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)


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


def hook_manager(plugins: Sequence[object]) -> pluggy.PluginManager:
    """Return a manager of this run's own, which calls the plugins in the order given.

    Raises `PluginError` where a plugin implements a hook that does not exist, or asks for an argument unknown to it. An
    exception in a hook surfaces as a `PluginError` too, which names the plugin and the hook.
    """
    manager = pluggy.PluginManager("metaforge")
    manager.add_hookspecs(Specs)
    # pluggy calls the last one registered first.
    for number, plugin in reversed(list(enumerate(plugins, start=1))):
        name = f"{type(plugin).__name__} ({number})"
        try:
            manager.register(_Named(plugin), name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"The hook plugin {type(plugin).__name__} does not fit the hook specs: {error}",
                where=type(plugin).__module__,
                remedy=f"the hooks are {', '.join(names())}",
            ) from error
    return manager


def end_run(manager: pluggy.PluginManager, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
    """Call every plugin's `metaforge_run_end`, whatever another one raises; raise the first exception afterwards."""
    raised: list[MetaForgeError] = []
    plugins = manager.get_plugins()
    for ending in reversed(manager.hook.metaforge_run_end.get_hookimpls()):
        alone = manager.subset_hook_caller("metaforge_run_end", [one for one in plugins if one is not ending.plugin])
        try:
            alone(run=run, outcome=outcome, error=error)
        except MetaForgeError as caught:
            raised.append(caught)
    if raised:
        raise raised[0]


class _Named:
    """A plugin's hook implementations, whose exceptions name them; MetaForge's own errors are clear as they are."""

    def __init__(self, plugin: object) -> None:
        for name in dir(plugin):
            method = getattr(plugin, name)
            options = getattr(method, "metaforge_impl", None)
            if isinstance(options, Mapping):
                # pluggy wants its wrappers to be generators, as they are written.
                wraps = options.get("wrapper") or options.get("hookwrapper")
                setattr(self, name, method if wraps else _named(method, type(plugin), name))


def _named(method: Callable[..., Any], cls: type[Any], hook: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except MetaForgeError:
            raise
        except Exception as error:
            raise PluginError(
                f"The hook {hook} of {cls.__name__} raised {type(error).__name__}: {error}",
                where=f"{cls.__module__}:{cls.__qualname__}",
                remedy="run without this hook, or correct it (METAFORGE_DEBUG=1 shows the trace)",
            ) from error

    return call
