"""The hook specifications: the points of a run at which plugins are called.

Hooks run on the host, between outer steps, and never inside a `torch.func` transform. This module does not import
torch, because the command line imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    from metaforge.authoring.kinds import TaskKind
    from metaforge.authoring.protocols import Task

Outcome = Literal["finished", "stopped", "failed"]
"""How a run ended: after its last step, early (by a hook or Ctrl-C), or with an error."""

hookspec = pluggy.HookspecMarker("metaforge")

hookimpl = pluggy.HookimplMarker("metaforge")
"""Marks a method as the implementation of the hook of its name: a decorator, from pluggy.

`hookimpl(tryfirst=True)` and `hookimpl(trylast=True)` change the order of calls, and `hookimpl(wrapper=True)` marks a
generator that wraps the other implementations.
"""


@dataclass(frozen=True)
class RunInfo:
    """What a hook knows about its run.

    Attributes:
        folder: The run folder; None in a dry run, which keeps nothing.
        settings: The resolved configuration, nested as in a run file: `settings["train"]["steps"]`. The values are
            those that JSON has.
        kind: The kind of task that the data set of the run has, a `TaskKind`: `run.kind.scale` says what its score is
            called, which direction is better and how it is printed. The name of a built-in kind stands for it.
        command: The command line of the run.
        environment: The content of `env.json`: the machine, the versions of all plugins, the plan and chunk of the
            engine.
        start: The outer step from which this process continues: 0 in a new run, the step of the checkpoint in a resumed
            one. A hook discards what it wrote about later steps.

    Example:
        >>> from metaforge.authoring import RunInfo
        >>> run = RunInfo(folder=None, settings={"train": {"steps": 100}}, kind="classification")
        >>> run.settings["train"]["steps"], run.kind.scale.higher_is_better
        (100, True)
    """

    folder: Path | None
    settings: Mapping[str, Any]
    kind: TaskKind
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0

    def __post_init__(self) -> None:
        # Imported here, because the module of the kinds imports torch.
        from metaforge.authoring.kinds import task_kind

        object.__setattr__(self, "kind", task_kind(self.kind))


@runtime_checkable
class Stateful(Protocol):
    """A hook plugin with a state that is saved in checkpoints and restored when a run is resumed.

    A plugin has both methods or neither.

    Example:
        >>> from metaforge.authoring import Stateful
        >>> class Counter:
        ...     "Counts, also over a resume."
        ...     def __init__(self):
        ...         self.count = 0
        ...     def state(self):
        ...         return {"count": self.count}
        ...     def restore(self, state):
        ...         self.count = state["count"]
        >>> counter = Counter()
        >>> counter.restore({"count": 3})
        >>> counter.state(), isinstance(counter, Stateful)
        ({'count': 3}, True)
    """

    def state(self) -> Mapping[str, Any]:
        """Return the state, as values that JSON can represent (so no NaN). It is called after every outer step."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a resumed run. It is called before `metaforge_run_start`.

        Args:
            state: What `state` returned, read back from JSON.
        """
        ...


class Specs:
    """The eight hooks. An implementation takes the arguments that it needs, by the names used here."""

    @hookspec
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Called once, when the run's folder exists and its configuration is written."""

    @hookspec
    def metaforge_before_step(self, run: RunInfo, step: int, batches: Sequence[Task]) -> None:
        """Called before outer step `step` (from 1), with the tasks that it learns from.

        `batches` has the tasks of each batch of the step `[tasks, ...]`, or of each shape in it if shapes vary.
        """

    @hookspec
    def metaforge_after_step(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> None:
        """Called after outer step `step`, with the metrics of the run.

        `loss`, `score`, `score_ci` (95 % confidence interval) and the learner's other metrics are means over all tasks
        since the last record in `metrics.jsonl`, at most `train.log_every` outer steps. A learner that logs no score
        has no `score`. `tasks_per_second`, `elapsed` and `eta` (seconds) describe the whole run.
        """

    @hookspec
    def metaforge_after_eval(self, run: RunInfo, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Called when the learner was evaluated on a split after outer step `step`."""

    @hookspec(firstresult=True)
    def metaforge_should_stop(self, run: RunInfo, step: int, metrics: Mapping[str, float]) -> bool | None:
        """Return True to end the run after this step, False to continue it, None to let the next plugin decide.

        After a validation, `metrics` also has `val_score` and `val_score_ci`.
        """

    @hookspec
    def metaforge_checkpoint(self, run: RunInfo, step: int, path: Path) -> None:
        """Called when the checkpoint of outer step `step` is complete in the folder `path`; a dry run deletes it."""

    @hookspec
    def metaforge_run_end(self, run: RunInfo, outcome: Outcome, error: BaseException | None) -> None:
        """Called once when the run has ended, in every case; `error` is the exception that ended it, or None."""

    @hookspec
    def metaforge_run_facts(self, run: RunInfo) -> Mapping[str, str]:  # type: ignore[empty-body]
        """Return facts to store in the run's `status.json`, such as the address of an experiment tracker."""


def names() -> tuple[str, ...]:
    """Return the names of the hooks."""
    return tuple(name for name in vars(Specs) if name.startswith("metaforge_"))
