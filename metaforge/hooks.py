"""The hook specs: what happens during a run that a plugin may watch. Host side only, never inside a transform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pluggy

from metaforge.errors import PluginError

if TYPE_CHECKING:
    from metaforge.config import Resolved
    from metaforge.protocols import Task

Outcome = Literal["finished", "stopped", "failed"]

hookspec = pluggy.HookspecMarker("metaforge")


@dataclass(frozen=True)
class RunInfo:
    """What a hook may know of its run: its folder (None in a dry run), its resolved configuration and its command."""

    folder: Path | None
    config: Resolved
    command: str = ""


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
        """Outer step `step` is done; `metrics` has the learner's own figures and these.

        `loss`, `score` and `score_ci` (over the step's tasks), `tasks_per_second`, `elapsed` and `eta` (seconds).
        """

    @hookspec
    def metaforge_after_eval(self, run: RunInfo, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """The learner was evaluated on a split after outer step `step`."""

    @hookspec(firstresult=True)
    def metaforge_should_stop(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Return True to end the run after this step, None to leave the question to the next hook."""

    @hookspec
    def metaforge_checkpoint(self, run: RunInfo, step: int, path: Path) -> None:
        """A checkpoint of outer step `step` was written and verified at `path`."""

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

    Raises `PluginError` where a plugin implements a hook that does not exist, or asks for an argument unknown to it.
    """
    manager = pluggy.PluginManager("metaforge")
    manager.add_hookspecs(Specs)
    # pluggy calls the last one registered first.
    for number, plugin in reversed(list(enumerate(plugins, start=1))):
        name = f"{type(plugin).__name__} ({number})"
        try:
            manager.register(plugin, name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(
                f"The hook plugin {type(plugin).__name__} does not fit the hook specs: {error}",
                where=type(plugin).__module__,
                remedy=f"the hooks are {', '.join(names())}",
            ) from error
    return manager
