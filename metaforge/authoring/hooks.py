"""The hook specs: what happens during a run that a plugin may watch. Host side only, never inside a transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    from metaforge.authoring.protocols import Kind, Task

Outcome = Literal["finished", "stopped", "failed"]

hookspec, hookimpl = pluggy.HookspecMarker("metaforge"), pluggy.HookimplMarker("metaforge")


@dataclass(frozen=True)
class RunInfo:
    """What a hook knows about its run.

    Attributes:
        folder: The run folder; None in a dry run, which keeps nothing.
        settings: The resolved configuration, nested as in a run file: `settings["train"]["steps"]`. The values are
            those that JSON has.
        kind: The kind of task that the data set of the run has: `"classification"` or `"regression"`.
        command: The command line of the run.
        environment: The content of `env.json`: the machine, the versions of all plugins, the plan and chunk of the
            engine.
        start: The outer step from which this process continues: 0 in a new run, the step of the checkpoint in a resumed
            one. A hook discards what it wrote about later steps.

    Example:
        >>> from metaforge.authoring import RunInfo
        >>> run = RunInfo(folder=None, settings={"train": {"steps": 100}}, kind="classification")
        >>> run.settings["train"]["steps"], run.start
        (100, 0)
    """

    folder: Path | None
    settings: Mapping[str, Any]
    kind: Kind
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
