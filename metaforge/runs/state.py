"""The state of a run after an outer step, and how it is saved to checkpoints and restored from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metaforge.authoring.functional import prefixed, select
from metaforge.authoring.protocols import Params
from metaforge.config.settings import CheckpointConfig
from metaforge.errors import CheckpointError, PluginError
from metaforge.runs import checkpoint, checkpoint_files
from metaforge.runs.optimizer_state import Scalar
from metaforge.runs.running_summary import RunningSummary


@dataclass(frozen=True)
class State:
    """Everything that later steps depend on, after a step that is complete with its hooks and records.

    Attributes:
        step: Number of outer steps so far, skipped ones included.
        seconds: Duration of the run so far.
        values: The values of the learner.
        training: The tensors that the outer optimiser keeps.
        scalars: The numbers, strings and Nones that it keeps.
        window: The summary of each per-task metric since the last regular record, by name.
        norms: The norms of the latest meta-gradients, for the detection of divergence.
        skipped: The steps that were skipped because they diverged.
        best: The best validation score so far, None before the first validation.
        best_step: The step of that validation.
        hooks: The states of hook plugins, by name.
        inexact: Why the run does not continue bit-exactly after a resume, each with the step of that resume.
    """

    step: int = 0
    seconds: float = 0.0
    values: Params = field(default_factory=dict)
    training: Params = field(default_factory=dict)
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    window: Mapping[str, RunningSummary] = field(default_factory=dict)
    norms: tuple[float, ...] = ()
    skipped: tuple[int, ...] = ()
    best: float | None = None
    best_step: int | None = None
    hooks: Mapping[str, Any] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()

    def is_over(self, steps: int, budget: float | None) -> bool:
        """Return whether a run of `steps` outer steps, or of `budget` seconds, is over."""
        return self.step >= steps or (budget is not None and self.seconds >= budget)


# The most bytes that the states of all hooks may take of a checkpoint's state.json: half of what is read of it.
_MOST_HOOK_BYTES = checkpoint_files.MOST_JSON // 2
# Far fewer than Python's recursion limit, which the parser of JSON must not reach.
_MOST_LEVELS = 25

_FACTS = ("seconds", "scalars", "norms", "skipped", "best", "best_step", "hooks", "inexact")


class Saver:
    """Writes checkpoints to the `ckpt` folder of a run, removes old ones, and finds the last valid one.

    Args:
        folder: The run folder.
        config: When to save, and how many checkpoints to keep.
        facts: Saved with every state: the configuration and the environment of the run.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, facts: Mapping[str, Any]) -> None:
        self.folder, self._config, self._facts = folder / "ckpt", config, facts
        self._last: tuple[int, float] | None = None

    def due(self, state: State) -> bool:
        """Return whether a checkpoint of this state is due."""
        step, seconds = (0, 0.0) if self._last is None else self._last
        if self._config.every is not None:
            return state.step - step >= self._config.every
        return state.seconds - seconds >= self._config.interval

    def save(self, state: State, *, best: bool = False) -> Path | None:
        """Save a state and remove old checkpoints.

        Args:
            state: The state to save.
            best: Whether it is the best so far in validation.

        Returns:
            The path of the new checkpoint, or None if the state was saved before.

        Raises:
            PluginError: If the state of a hook plugin cannot be saved and loaded; the error names it. The rest of the
                state is saved before.
            StorageError: If the disk is full or not writable.
            CheckpointError: If the checkpoint could not be loaded again.
        """
        saved = self._last is not None and self._last[0] == state.step
        if saved and not best:
            return None
        state, errors = _without_faulty_hooks(state)
        facts = _to_json(state) | dict(self._facts)
        path = checkpoint.save(self.folder, state.step, state.values, state.training, facts)
        if best:
            checkpoint.mark_best(self.folder, state.step)
        checkpoint.prune(self.folder, self._config.keep)
        self._last = (state.step, state.seconds)
        if errors:
            raise errors[0]
        return None if saved else path

    def find(self) -> tuple[State, checkpoint.Checkpoint, list[CheckpointError]] | None:
        """Return the last valid state, its checkpoint, and one error for each later checkpoint that is damaged.

        Returns None if nothing was saved yet. Raises `CheckpointError` if all checkpoints are damaged.
        """
        if not checkpoint.steps(self.folder):
            return None
        saved, bad = checkpoint.load_latest(self.folder)
        state = _state(saved, self.folder)
        self._last = (state.step, state.seconds)
        return state, saved, bad

    def restored(self, state: State) -> None:
        """Point `BEST` to the best step of a restored state, in case the earlier process died before it did so."""
        if state.best_step is not None and checkpoint.best(self.folder) != state.best_step:
            checkpoint.mark_best(self.folder, state.best_step)


def better(score: float, best: float | None, kind: str) -> bool:
    """Return whether a validation score is better than the best so far: a higher accuracy, or a lower error."""
    if not math.isfinite(score):
        return False
    return best is None or (score > best if kind == "classification" else score < best)


def _without_faulty_hooks(state: State) -> tuple[State, list[PluginError]]:
    """Return the state without the entries of hooks that could not be loaded again, and an error for each of them.

    A run that is resumed from such a state is inexact: the state records why.
    """
    errors: dict[str, PluginError] = {}
    hooks: dict[str, Any] = {}
    space = _MOST_HOOK_BYTES
    for name, hook_state in state.hooks.items():
        try:
            space -= _size_as_json(hook_state)
            if space < 0:
                raise ValueError(f"the states of all hooks together exceed {_MOST_HOOK_BYTES:,} bytes")
        except (TypeError, ValueError, RecursionError, CheckpointError) as error:
            errors[name] = PluginError(
                f"The state of the hook {name!r} cannot be saved as JSON: {getattr(error, 'what', error)}.",
                where=f"hooks.{name}",
                remedy="return a dictionary of numbers, strings, lists and dictionaries from its state()",
            )
            errors[name].__cause__ = error
        else:
            hooks[name] = hook_state
    lost = tuple(f"hooks.{name}: its state could not be saved (after step {state.step})" for name in errors)
    return replace(state, hooks=hooks, inexact=(*state.inexact, *lost)), list(errors.values())


def _size_as_json(hook_state: Any) -> int:
    """Return the bytes that the state of a hook takes in a checkpoint.

    Raises `TypeError`, `ValueError`, `RecursionError` or `CheckpointError` unless it is a dictionary that a checkpoint
    can hold and that is equal to it after loading, except that tuples become lists.
    """
    if not isinstance(hook_state, dict):
        raise TypeError(f"it is of type {type(hook_state).__name__}, not a dictionary")
    # Nested and indented as in a checkpoint.
    text = json.dumps({"hooks": {"name": hook_state}}, allow_nan=False, indent=1)
    if len(text) > _MOST_HOOK_BYTES:
        raise ValueError(f"it has {len(text):,} bytes, more than {_MOST_HOOK_BYTES:,}")
    loaded = checkpoint_files.parse_object(Path("state.json"), text.encode())["hooks"]["name"]
    if loaded != _with_lists(hook_state):
        raise ValueError("it differs after loading; keys must be strings")
    return len(text)


def _with_lists(value: Any, depth: int = 0) -> Any:
    """Return a value with every tuple replaced by a list; raise `ValueError` if it nests deeper than 25 levels."""
    if depth > _MOST_LEVELS:
        raise ValueError(f"it nests more than {_MOST_LEVELS} levels deep")
    if isinstance(value, dict):
        return {key: _with_lists(entry, depth + 1) for key, entry in value.items()}
    return [_with_lists(entry, depth + 1) for entry in value] if isinstance(value, (list, tuple)) else value


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def _scalar(value: Any) -> Scalar:
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise TypeError(f"{value!r} is not a number, a string or None")
    return value


def _to_json(state: State) -> dict[str, Any]:
    """Return everything in a state but the step and the tensors, as JSON can hold it."""
    window = {name: summary.to_json() for name, summary in state.window.items()}
    return {name: getattr(state, name) for name in _FACTS} | {"window": window}


def _state(saved: checkpoint.Checkpoint, folder: Path) -> State:
    facts = saved.facts
    state = State(step=saved.step, values=saved.values, training=saved.training)
    if facts["schema"] == 1:
        return state
    try:
        best, best_step = facts["best"], facts.get("best_step")
        return replace(
            state,
            seconds=_finite(facts["seconds"]),
            # A learner's own metrics may be NaN or infinite; the numbers that the run depends on must be finite.
            window={str(name): RunningSummary.from_json(metric) for name, metric in facts["window"].items()},
            scalars={str(name): _scalar(value) for name, value in facts.get("scalars", {}).items()},
            norms=tuple(_finite(norm) for norm in facts["norms"]),
            skipped=tuple(int(step) for step in facts["skipped"]),
            best=None if best is None else _finite(best),
            best_step=None if best_step is None else int(best_step),
            hooks={str(name): dict(remembered) for name, remembered in facts["hooks"].items()},
            inexact=tuple(str(change) for change in facts.get("inexact", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"The checkpoint of step {saved.step} lacks what is needed to resume the run: {error!r}.",
            where=str(folder),
            remedy="`metaforge evaluate` can use it; to train on, train a new run",
        ) from error


def to_bytes(state: State, facts: Mapping[str, Any]) -> bytes:
    """Return a state and the facts about it as bytes, to be broadcast to other ranks."""
    tensors = prefixed("values", state.values) | prefixed("training", state.training)
    rest = _to_json(state) | {"step": state.step}
    head = json.dumps({"state": rest, "order": list(tensors), "facts": dict(facts)}).encode()
    return len(head).to_bytes(8, "little") + head + checkpoint_files.to_bytes(tensors)


def from_bytes(data: bytes) -> tuple[State, dict[str, Any]]:
    """Return the state and the facts that `to_bytes` was called with."""
    end = 8 + int.from_bytes(data[:8], "little")
    head, tensors = json.loads(data[8:end]), checkpoint_files.from_bytes(data[end:])
    rest = head["state"] | {name: tuple(head["state"][name]) for name in ("norms", "skipped", "inexact")}
    rest["window"] = {name: RunningSummary.from_json(metric) for name, metric in rest["window"].items()}
    ordered = {key: tensors[key] for key in head["order"]}
    return State(**rest, values=select(ordered, "values"), training=select(ordered, "training")), head["facts"]
