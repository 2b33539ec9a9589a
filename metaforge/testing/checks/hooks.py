"""What a hook plugin must do: live through any run, and leave the run as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.protocols import Params
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.sources import Layer
from metaforge.registry.registry import Registry
from metaforge.runs.hook_calls import end_run, hook_manager, restore_states, states
from metaforge.runs.training import run_training
from metaforge.testing.bench import SHAPES, difference
from metaforge.testing.check import check
from metaforge.testing.global_state import untouched_generators
from metaforge.testing.subject import Subject
from metaforge.testing.toy import ToyClasses, ToyDescent, ToyLearner, ToyNet, ToyTasksOptions

METRICS = {"loss": 1.25, "score": 0.5, "score_ci": 0.1, "elapsed": 1.0, "eta": 2.0, "tasks_per_second": 8.0}
VALIDATION = {"score": 0.5, "score_ci": 0.1}
STEPS = 3


def toy_run(steps: int = STEPS) -> Resolved:
    """Return the configuration of a toy training."""
    registry = Registry([])
    toys = {"learner": ToyLearner, "dataset": ToyClasses, "backbone": ToyNet, "adapter": ToyDescent}
    for kind, cls in toys.items():
        registry = registry.with_plugin(kind, f"toy-{kind}", cls)
    values = {
        **{kind: {"name": f"toy-{kind}"} for kind in ("learner", "dataset", "backbone")},
        "adapters": {"toy-adapter": {}},
        "task": SHAPES["classification"]._asdict(),
        "train": {"steps": steps, "tasks": 2, "log_every": 1, "validate_every": 1, "validate_tasks": 2},
        "device": "cpu",
    }
    return resolve([Layer("the conformance kit", values)], registry)


def toy_info(folder: Path | None, resolved: Resolved) -> RunInfo:
    """Return what hooks are told about the toy training."""
    return RunInfo(folder, resolved.to_dict(), "classification")


def call_all(hook: object, run: RunInfo, metrics: Mapping[str, float], tasks: Any) -> None:
    """Call a plugin's eight hooks in the order of a run of one step."""
    manager = hook_manager([hook])
    manager.hook.metaforge_run_start(run=run)
    manager.hook.metaforge_run_facts(run=run)
    manager.hook.metaforge_before_step(run=run, step=1, tasks=tasks)
    manager.hook.metaforge_after_step(run=run, step=1, metrics=metrics)
    manager.hook.metaforge_after_eval(run=run, step=1, split="val", metrics=VALIDATION)
    seen = {**metrics, "val_score": 0.5, "val_score_ci": 0.1}
    manager.hook.metaforge_should_stop(run=run, step=1, metrics=seen)
    if run.folder is not None:
        manager.hook.metaforge_checkpoint(run=run, step=1, path=run.folder / "ckpt" / "step-0000001")
    end_run(manager, run, "finished", None)


def _tasks() -> Any:
    return ToyClasses(ToyTasksOptions.model_validate({}), root=Path()).sample(
        "train", SHAPES["classification"], 0, 2, seed=0
    )


@check("hook")
def lives(subject: Subject) -> None:
    """It lives through the eight calls of a run, in a folder or without one, and through an end without a start."""
    resolved = toy_run()
    with tempfile.TemporaryDirectory() as folder, untouched_generators(f"a hook of {subject.label}"):
        for place in (Path(folder), None):
            call_all(subject.built(), toy_info(place, resolved), METRICS, _tasks())
            unstarted = hook_manager([subject.built()])
            end_run(unstarted, toy_info(place, resolved), "failed", RuntimeError("a run that never began"))


@check("hook")
def watches(subject: Subject) -> None:
    """It watches: the metrics and tasks that it is shown are the same afterwards."""
    resolved = toy_run()
    metrics, tasks = dict(METRICS), _tasks()
    before = tree_map(torch.clone, tasks)
    with tempfile.TemporaryDirectory() as folder:
        call_all(subject.built(), toy_info(Path(folder), resolved), metrics, tasks)
    assert metrics == METRICS, "the metrics were changed; they are the run's own: copy them"
    said = difference(before, tasks)
    assert not said, f"the tasks were changed: {said}; they are the run's own: copy them"


@check("hook")
def bystander(subject: Subject) -> None:
    """A training with it ends in the same weights, to the bit, as one of as many steps without it."""
    with_it, steps = _trained(STEPS, [subject.built()])
    assert steps > 0, "it stopped a training before its first step"
    without, _ = _trained(steps, [])
    said = difference(without, with_it)
    assert not said, f"weights differ from those of a run without it: {said}; change nothing that the run uses"


def _trained(steps: int, hooks: Sequence[object]) -> tuple[Params, int]:
    """Return the values after a toy training, and how many steps it took."""
    resolved = toy_run(steps)
    with tempfile.TemporaryDirectory() as folder:
        run = run_training(resolved, folder=Path(folder) / "run", hooks=hooks)
        return run.values, int(run.summary["steps"])


def _forgetful(subject: Subject) -> str:
    return "" if hasattr(subject.cls, "state") else "it has no `state` to remember over a resume"


@check("hook", unless=_forgetful)
def memory(subject: Subject) -> None:
    """What it remembers survives JSON: a new instance that takes it up remembers the same."""
    resolved = toy_run()
    hook, other = subject.built(), subject.built()
    call_all(hook, toy_info(None, resolved), METRICS, _tasks())
    remembered = states({subject.name: hook})
    restore_states({subject.name: other}, remembered)
    said = states({subject.name: other})
    assert said == remembered, f"restore takes up {said} of {remembered}; keep all that `state` returned"
