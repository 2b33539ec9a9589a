"""Saving and restoring the state of a run, and keeping the best checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaforge.authoring.kinds import task_kind
from metaforge.config.settings import CheckpointConfig
from metaforge.errors import CheckpointError, PluginError
from metaforge.runs import checkpoint
from metaforge.runs.running_summary import RunningSummary
from metaforge.runs.state import Saver, State, better, from_bytes, to_bytes

STATE = State(
    step=3,
    seconds=1.5,
    values={"model.w": torch.arange(3.0)},
    training={"step.model.w": torch.tensor(3.0)},
    window={"loss": RunningSummary().extended([0.1, 0.2]), "own": RunningSummary().extended([0.1, math.nan])},
    norms=(0.1, 0.2),
    skipped=(2,),
    best=0.75,
    best_step=2,
    hooks={"early-stop": {"best": 0.75, "waited": 1}},
    inexact=("train.lr: 1 -> 2 (after step 1)",),
)


def saver(folder: Path, **options: Any) -> Saver:
    return Saver(folder, CheckpointConfig(**options), {"config": {}, "environment": {}})


def same(one: State, two: State) -> bool:
    tensors = [(one.values, two.values), (one.training, two.training)]
    equal = all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in tensors)
    return equal and repr(replace(one, values={}, training={})) == repr(replace(two, values={}, training={}))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert saver(tmp_path).save(STATE) == tmp_path / "ckpt" / "step-0000003"
    found = saver(tmp_path).find()
    assert found is not None
    assert same(found[0], STATE)
    assert same(from_bytes(to_bytes(STATE, {"exact": True}))[0], STATE)


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    keep = saver(tmp_path)
    assert keep.save(STATE) is not None
    assert keep.save(STATE) is None
    assert keep.save(STATE, best=True) is None
    assert checkpoint.best(tmp_path / "ckpt") == 3


@pytest.mark.parametrize(
    ("options", "due"), [({"every": 2}, [False, True, False, True]), ({"interval": 3.0}, [False, False, True, False])]
)
def test_a_save_is_due_by_steps_or_by_time(tmp_path: Path, options: dict[str, Any], due: list[bool]) -> None:
    keep, found = saver(tmp_path, **options), []
    for step in range(1, 5):
        state = replace(STATE, step=step, seconds=float(step))
        found.append(keep.due(state))
        if found[-1]:
            keep.save(state)
    assert found == due


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", math.inf),
        ("seconds", "x"),
        ("norms", [math.nan]),
        ("norms", 3),
        ("window", {"loss": "x"}),
        ("window", []),
        ("window", {"loss": {"count": 0}}),
        ("window", {"loss": RunningSummary(2, 1.0, 0.0, -1.0, 0.0).to_json()}),
        ("skipped", [math.inf]),
        ("best", math.nan),
        ("hooks", {"early-stop": 3}),
        ("inexact", 3),
    ],
)
def test_facts_that_cannot_be_resumed_from_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    told = {key: getattr(STATE, key) for key in ("seconds", "norms", "skipped", "best", "hooks")} | {"window": {}}
    checkpoint.save(tmp_path / "ckpt", 3, STATE.values, STATE.training, {**told, name: value})
    with pytest.raises(CheckpointError, match="lacks what is needed to resume the run"):
        saver(tmp_path).find()


def test_best_follows_the_state_that_a_run_goes_on_from(tmp_path: Path) -> None:
    keep = saver(tmp_path)
    keep.save(replace(STATE, step=2), best=True)
    # Killed after the next best was saved, and before `BEST` said so.
    keep.save(replace(STATE, step=3, best_step=3))
    found = keep.find()
    assert found is not None
    keep.restored(found[0])
    assert checkpoint.best(tmp_path / "ckpt") == 3


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = {"x": value}
    return value


UNSAVABLE = {
    "an object": {"x": object()},
    "a set": {"x": {1}},
    "NaN": {"x": math.nan},
    "a list": [1, 2],
    "text": "x",
    "nothing": None,
    "70 MB of text": {"x": "y" * 70_000_000},
    "many numbers": {"x": [0] * 5_000_000},
    "numbers as keys": {1: "x"},
    "nested numbers as keys": {"x": [{"y": {2: 3}}]},
    "keys that are equal as text": {1: "x", "1": "y"},
    "an integer of 5,000 digits": {"x": 10**5000},
    "deep nesting": nested(40),
    "nesting without end": nested(5000),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_a_hook_state_that_could_not_be_loaded_is_refused_and_the_rest_is_saved(tmp_path: Path, name: str) -> None:
    keep, state = saver(tmp_path), replace(STATE, hooks={"odd": UNSAVABLE[name], "good": {"x": 1}})
    with pytest.raises(PluginError, match="state of the hook 'odd' cannot be saved"):
        keep.save(state)
    # The save at the end of the run finds the step saved.
    assert keep.save(state) is None
    found = saver(tmp_path).find()
    assert found is not None
    assert found[0].hooks == {"good": {"x": 1}}
    assert torch.equal(found[0].values["model.w"], STATE.values["model.w"])
    assert found[0].inexact == (*STATE.inexact, "hooks.odd: its state could not be saved (after step 3)")


def test_the_states_of_all_hooks_together_have_a_limit(tmp_path: Path) -> None:
    hooks = {name: {"x": "y" * 20_000_000} for name in ("first", "second")}
    with pytest.raises(PluginError, match=r"state of the hook 'second' .* together exceed 33,554,432 bytes"):
        saver(tmp_path).save(replace(STATE, hooks=hooks))
    found = saver(tmp_path).find()
    assert found is not None
    assert list(found[0].hooks) == ["first"]


def test_a_tuple_in_a_hook_state_becomes_a_list(tmp_path: Path) -> None:
    saver(tmp_path).save(replace(STATE, hooks={"good": {"x": (1, (2, 3)), "y": 2**128}}))
    found = saver(tmp_path).find()
    assert found is not None
    assert found[0].hooks == {"good": {"x": [1, [2, 3]], "y": 2**128}}


def test_a_window_that_an_older_checkpoint_lists_task_by_task_is_summarised(tmp_path: Path) -> None:
    facts = {key: getattr(STATE, key) for key in ("seconds", "norms", "skipped", "best", "hooks")}
    checkpoint.save(tmp_path / "ckpt", 3, STATE.values, STATE.training, facts | {"window": {"loss": [0.1, 0.7]}})
    found = saver(tmp_path).find()
    assert found is not None
    assert found[0].window == {"loss": RunningSummary().extended([0.1, 0.7])}


def test_a_state_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    keep = saver(tmp_path)
    keep.save(STATE)
    with pytest.raises(CheckpointError, match=r"state\.json is not written.*67,108,864 are read"):
        keep.save(replace(STATE, step=4, inexact=("x" * 2**26,)))
    assert checkpoint.steps(tmp_path / "ckpt") == [3]
    assert checkpoint.load_latest(tmp_path / "ckpt")[1] == []


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    assert saver(tmp_path).find() is None


@pytest.mark.parametrize(
    ("score", "best", "kind", "expected"),
    [
        (0.5, None, "classification", True),
        (0.6, 0.5, "classification", True),
        (0.5, 0.5, "classification", False),
        (0.4, 0.5, "regression", True),
        (math.nan, None, "regression", False),
        (-2.0, -3.0, "interaction", True),
    ],
)
def test_better_is_higher_accuracy_or_lower_error(score: float, best: float | None, kind: str, expected: bool) -> None:
    assert better(score, best, task_kind(kind)) is expected
