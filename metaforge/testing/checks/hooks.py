"""Checks of hook plugins: they raise no error in any run, and do not change the run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.protocols import Params
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.sources import Layer
from metaforge.registry.registry import Registry
from metaforge.runs.hook_calls import end_run, hook_manager, restore_states, states
from metaforge.runs.training import run_training
from metaforge.testing.bench import TASK_SHAPES, difference
from metaforge.testing.check import check
from metaforge.testing.global_state import assert_generators_unchanged
from metaforge.testing.subject import Subject
from metaforge.testing.toy import (
    ToyClasses,
    ToyDescent,
    ToyLearner,
    ToyNet,
    ToyOptimizer,
    ToySchedule,
    ToyTasksOptions,
)

METRICS = {"loss": 1.25, "score": 0.5, "score_ci": 0.1, "elapsed": 1.0, "eta": 2.0, "tasks_per_second": 8.0}
VALIDATION = {"score": 0.5, "score_ci": 0.1}
STEPS = 3


def toy_run(steps: int = STEPS) -> Resolved:
    """Return the resolved settings of a training run of the toy learner."""
    registry = Registry([])
    singles = {"learner": ToyLearner, "dataset": ToyClasses, "backbone": ToyNet, "optimizer": ToyOptimizer}
    singles |= {"schedule": ToySchedule}
    for kind, cls in {**singles, "adapter": ToyDescent}.items():
        registry = registry.with_plugin(kind, f"toy-{kind}", cls)
    values = {
        **{kind: {"name": f"toy-{kind}"} for kind in singles},
        "adapters": {"toy-adapter": {}},
        "task": TASK_SHAPES["classification"]._asdict(),
        "train": {"steps": steps, "tasks": 2, "log_every": 1, "validate_every": 1, "validate_tasks": 2},
        "device": "cpu",
    }
    return resolve([Layer("the conformance kit", values)], registry)


def toy_info(folder: Path | None, resolved: Resolved) -> RunInfo:
    """Return the run information that hooks receive in a run of the toy learner."""
    return RunInfo(folder, resolved.to_dict(), CLASSIFICATION)


def call_all(hook: object, run: RunInfo, metrics: Mapping[str, float], tasks: Any) -> None:
    """Call the eight hooks of a plugin in the order of a run of one step."""
    manager = hook_manager([hook])
    manager.hook.metaforge_run_start(run=run)
    manager.hook.metaforge_run_facts(run=run)
    manager.hook.metaforge_before_step(run=run, step=1, batches=[tasks])
    manager.hook.metaforge_after_step(run=run, step=1, metrics=metrics)
    manager.hook.metaforge_after_eval(run=run, step=1, split="val", metrics=VALIDATION)
    with_validation = {**metrics, "val_score": 0.5, "val_score_ci": 0.1}
    manager.hook.metaforge_should_stop(run=run, step=1, metrics=with_validation)
    if run.folder is not None:
        manager.hook.metaforge_checkpoint(run=run, step=1, path=run.folder / "ckpt" / "step-0000001")
    end_run(manager, run, "finished", None)


def _tasks() -> Any:
    return ToyClasses(ToyTasksOptions.model_validate({}), root=Path()).sample(
        "train", TASK_SHAPES["classification"], 0, 2, seed=0
    )


@check("hook")
def lives(subject: Subject) -> None:
    """It raises no error in a run with or without a folder, nor in one that ends before it has started."""
    resolved = toy_run()
    with tempfile.TemporaryDirectory() as name, assert_generators_unchanged(f"a hook of {subject.label}"):
        for folder in (Path(name), None):
            call_all(subject.build(), toy_info(folder, resolved), METRICS, _tasks())
            not_started = hook_manager([subject.build()])
            end_run(not_started, toy_info(folder, resolved), "failed", RuntimeError("the run failed before it started"))


@check("hook")
def watches(subject: Subject) -> None:
    """It does not modify the metrics and tasks that are passed to it."""
    resolved = toy_run()
    metrics, tasks = dict(METRICS), _tasks()
    before = tree_map(torch.clone, tasks)
    with tempfile.TemporaryDirectory() as folder:
        call_all(subject.build(), toy_info(Path(folder), resolved), metrics, tasks)
    assert metrics == METRICS, "a hook has modified the metrics, which the run uses afterwards; copy them first"
    mismatch = difference(before, tasks)
    assert not mismatch, (
        f"a hook has modified the tasks, on which the run is about to train: {mismatch}; copy them first"
    )


@check("hook")
def bystander(subject: Subject) -> None:
    """A training run with it ends with bitwise the same values as a run of the same length without it."""
    with_it, steps = _train(STEPS, [subject.build()])
    assert steps > 0, "it stopped a training run before the first step; return None from metaforge_should_stop there"
    without, _ = _train(steps, [])
    mismatch = difference(without, with_it)
    assert not mismatch, (
        f"the values differ from those of a run without it: {mismatch}; do not modify anything that the run uses"
    )


def _train(steps: int, hooks: Sequence[object]) -> tuple[Params, int]:
    """Return the values after a training run of the toy learner, and the number of its steps."""
    resolved = toy_run(steps)
    with tempfile.TemporaryDirectory() as folder:
        run = run_training(resolved, folder=Path(folder) / "run", hooks=hooks)
        return run.values, int(run.summary["steps"])


def _has_no_state(subject: Subject) -> str:
    return "" if hasattr(subject.cls, "state") else "it has no method `state`, so a resumed run has nothing to restore"


@check("hook", skip_reason=_has_no_state)
def memory(subject: Subject) -> None:
    """A new instance that restores its state, after saving and loading it as JSON, has the same state."""
    hook, other = subject.build(), subject.build()
    call_all(hook, toy_info(None, toy_run()), METRICS, _tasks())
    saved = _state_from_json(subject.name, hook)
    restore_states({subject.name: other}, saved)
    restored = _state_from_json(subject.name, other)
    assert restored == saved, (
        f"after restore the state is {restored}, but {saved} was saved; restore everything that `state` returns"
    )


def _state_from_json(name: str, hook: object) -> dict[str, Any]:
    """Return the state of a hook as a checkpoint saves and loads it."""
    try:
        state: dict[str, Any] = json.loads(json.dumps(states({name: hook}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"`state` must return what JSON can represent ({error}); return strings, finite numbers, booleans, None,"
            " lists and dictionaries"
        ) from error
    return state
