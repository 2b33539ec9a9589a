"""Call the hooks of a plugin as a run does, without training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from metaforge.authoring import Kind, RunInfo
from metaforge.config.resolve import resolve
from metaforge.config.sources import Layer
from metaforge.registry.scan import scan
from metaforge.runs.hook_calls import end_run, hook_manager


def run_of(folder: Path | None, *, start: int = 0, dataset: str = "glyphs", **train: Any) -> RunInfo:
    """Return the `RunInfo` of a run of ProtoNet, or of CNP on sinusoids."""
    learner = "cnp" if dataset == "sinusoid" else "protonet"
    values = {"learner": learner, "dataset": dataset, "train": {"steps": 20, **train}}
    kind: Kind = "regression" if dataset == "sinusoid" else "classification"
    resolved = resolve([Layer("test", values)], scan())
    return RunInfo(folder, resolved.to_dict(), kind, start=start)


def drive(
    plugin: object,
    run: RunInfo,
    steps: Iterable[tuple[int, Mapping[str, float]]],
    *,
    validations: Mapping[int, Mapping[str, float]] | None = None,
    outcome: Any = "finished",
) -> int | None:
    """Call the hooks of a plugin as training does; return the step at which the plugin stopped the run, or None."""
    hook = (manager := hook_manager([plugin])).hook
    hook.metaforge_run_start(run=run)
    stopped = None
    for step, recorded in steps:
        metrics = dict(recorded)
        hook.metaforge_after_step(run=run, step=step, metrics=metrics)
        if validations and step in validations:
            hook.metaforge_after_eval(run=run, step=step, split="val", metrics=validations[step])
            metrics |= {f"val_{name}": value for name, value in validations[step].items()}
        if hook.metaforge_should_stop(run=run, step=step, metrics=metrics):
            stopped = step
            break
    end_run(manager, run, outcome, None)
    return stopped
