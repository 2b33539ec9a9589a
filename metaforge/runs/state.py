"""What the outer loop knows after a step, and how that is saved and found again."""

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
from metaforge.runs import checkpoint


@dataclass(frozen=True)
class State:
    """Everything that the steps to come depend on; a step counts once all that belongs to it is done.

    `values` are the learner's, `training` the outer optimiser's tensors; `window` has each task's figures since the
    last record that was due, `norms` the meta-gradient's last norms, `skipped` the steps left out, `best` the best
    validation so far and `best_step` its step, `hooks` what hook plugins want to remember, `inexact` what has kept the
    run from going on exactly, with the step after which it did.
    """

    step: int = 0
    seconds: float = 0.0
    values: Params = field(default_factory=dict)
    training: Params = field(default_factory=dict)
    window: Mapping[str, list[float]] = field(default_factory=dict)
    norms: tuple[float, ...] = ()
    skipped: tuple[int, ...] = ()
    best: float | None = None
    best_step: int | None = None
    hooks: Mapping[str, Any] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()

    def is_over(self, steps: int, budget: float | None) -> bool:
        """Return whether a run of so many steps, or of so many seconds, has come to its end."""
        return self.step >= steps or (budget is not None and self.seconds >= budget)


_FACTS = ("seconds", "window", "norms", "skipped", "best", "best_step", "hooks", "inexact")


class Saver:
    """Saves states to a run's `ckpt` folder when it is time, keeps the last and the best, and finds them again."""

    def __init__(self, folder: Path, config: CheckpointConfig, facts: Mapping[str, Any]) -> None:
        self.folder, self._config, self._facts = folder / "ckpt", config, facts
        self._last: tuple[int, float] | None = None

    def due(self, state: State) -> bool:
        """Return whether a state should be saved now."""
        step, seconds = (0, 0.0) if self._last is None else self._last
        if self._config.every is not None:
            return state.step - step >= self._config.every
        return state.seconds - seconds >= self._config.interval

    def save(self, state: State, *, best: bool = False) -> Path | None:
        """Save a state and prune older ones; return the checkpoint's path, or None if it was saved before."""
        known = self._last is not None and self._last[0] == state.step
        if known and not best:
            return None
        for name, remembered in state.hooks.items():
            _require_json(name, remembered)
        facts = {name: getattr(state, name) for name in _FACTS} | dict(self._facts)
        path = checkpoint.save(self.folder, state.step, state.values, state.training, facts)
        if best:
            checkpoint.mark_best(self.folder, state.step)
        checkpoint.prune(self.folder, self._config.keep)
        self._last = (state.step, state.seconds)
        return None if known else path

    def find(self) -> tuple[State, checkpoint.Checkpoint, list[CheckpointError]] | None:
        """Return the last valid state, with the checkpoint it came from and what is wrong with later ones.

        None means that nothing was saved yet. Raises `CheckpointError` where all that was saved is damaged.
        """
        if not checkpoint.steps(self.folder):
            return None
        saved, bad = checkpoint.load_latest(self.folder)
        state = _state(saved, self.folder)
        self._last = (state.step, state.seconds)
        return state, saved, bad

    def restored(self, state: State) -> None:
        """Let `BEST` name the best step of a state that a run goes on from: the process may have died before it did."""
        if state.best_step is not None and checkpoint.best(self.folder) != state.best_step:
            checkpoint.mark_best(self.folder, state.best_step)


def better(score: float, best: float | None, kind: str) -> bool:
    """Return whether a validation score beats the best so far: higher accuracy, or lower error."""
    if not math.isfinite(score):
        return False
    return best is None or (score > best if kind == "classification" else score < best)


def _require_json(name: str, remembered: Any) -> None:
    try:
        json.dumps(remembered)
    except (TypeError, ValueError, RecursionError) as error:
        raise PluginError(
            f"What the hook {name!r} wants to remember cannot be saved as JSON: {error}.",
            where=f"hooks.{name}",
            remedy="return numbers, texts, lists and tables from its state()",
        ) from error


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} where a finite number should be")
    return float(value)


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
            # Figures of a learner's own may be anything; what the run itself decides by may not.
            window={str(name): [float(x) for x in figures] for name, figures in facts["window"].items()},
            norms=tuple(_finite(norm) for norm in facts["norms"]),
            skipped=tuple(int(step) for step in facts["skipped"]),
            best=None if best is None else _finite(best),
            best_step=None if best_step is None else int(best_step),
            hooks={str(name): dict(remembered) for name, remembered in facts["hooks"].items()},
            inexact=tuple(str(change) for change in facts.get("inexact", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"The checkpoint of step {saved.step} lacks what a run needs to go on: {error!r}.",
            where=str(folder),
            remedy="`metaforge evaluate` can use it; to train on, train a new run",
        ) from error


def to_bytes(state: State, facts: Mapping[str, Any]) -> bytes:
    """Return a state, and facts to tell with it, as bytes for another process."""
    tensors = prefixed("values", state.values) | prefixed("training", state.training)
    rest = {name: getattr(state, name) for name in _FACTS} | {"step": state.step}
    head = json.dumps({"state": rest, "order": list(tensors), "facts": dict(facts)}).encode()
    return len(head).to_bytes(8, "little") + head + checkpoint.to_bytes(tensors)


def from_bytes(data: bytes) -> tuple[State, dict[str, Any]]:
    """Return what `to_bytes` was given."""
    end = 8 + int.from_bytes(data[:8], "little")
    head, tensors = json.loads(data[8:end]), checkpoint.from_bytes(data[end:])
    rest = head["state"] | {name: tuple(head["state"][name]) for name in ("norms", "skipped", "inexact")}
    ordered = {key: tensors[key] for key in head["order"]}
    return State(**rest, values=select(ordered, "values"), training=select(ordered, "training")), head["facts"]
