"""The initial values of a new run that come from elsewhere: another run, a file of weights, or pretrained weights.

Both are read once, before the run folder is created, and saved as the checkpoint of step 0 with which the run begins.
So a run depends on neither after that: it is resumed, loaded and evaluated without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metaforge.authoring.functional import matching, split_state
from metaforge.authoring.progress import is_progress
from metaforge.authoring.protocols import STATE, Params
from metaforge.config.resolved import Resolved
from metaforge.config.settings import RunConfig
from metaforge.config.toml_text import flatten
from metaforge.errors import CheckpointError, ConfigError, shown
from metaforge.runs import checkpoint, divergence
from metaforge.runs.folder import require_run
from metaforge.runs.outside_weights import PRETRAINED, SETTING, outside_weights, source_setting
from metaforge.runs.state import State, from_bytes, to_bytes
from metaforge.runs.worker import Worker

_ARROW = "->"
# Settings that a run cannot change: where its initial values came from, and which values stay as they are.
_START = ("train.init_from", "train.init_patterns", "train.freeze", SETTING, PRETRAINED)
# The most names that an error message lists.
_SHOWN = 12


def sources(resolved: Resolved) -> list[str]:
    """Return the settings of a run that name a source of initial values."""
    found = ["train.init_from"] if resolved.run.train.init_from else []
    return [*found, setting] if (setting := source_setting(resolved.backbone)) else found


def initial_state(worker: Worker) -> tuple[State, dict[str, Any]]:
    """Return the state with which a new run begins, and what `env.json` records of its initial values.

    Rank 0 reads the sources and broadcasts the values: other ranks may not be able to read its disk.

    Args:
        worker: The computation of this process.

    Returns:
        An empty state and no facts if the learner's own initial values are the run's.

    Raises:
        ConfigError: A source cannot be read, or nothing of it fits.
        CheckpointError: The run in `train.init_from` has no valid checkpoint.
        DivergedError: A value that was read is not finite.
    """
    if not sources(worker.resolved):
        return State(), {}
    data = b""
    if worker.world.is_rank_zero:
        values, facts = _read(worker, worker.settings)
        divergence.require_finite_start(f"learner {type(worker.learner).__name__}", values)
        data = to_bytes(State(values=values), facts)
    state, facts = from_bytes(worker.world.broadcast(data))
    return State(values={name: value.to(worker.device) for name, value in state.values.items()}), facts


def _read(worker: Worker, settings: RunConfig) -> tuple[Params, dict[str, Any]]:
    """Return the initial values of a run with everything that its settings take from elsewhere, and the facts of it."""
    facts: dict[str, Any] = {}
    weights = None
    if (found := outside_weights(worker.resolved.backbone, worker.spec)) is not None:
        weights = found.tensors
        facts["weights"] = {**found.source, "sha256": found.digest, "tensors": len(weights)}
    values, norm = worker.initial(weights), worker.learner.norm
    # No refusal: under these policies the network normalises by the statistics of a task, as it should.
    if (layers := worker.parts.loaded_statistics) and norm != "running":
        facts["weights"]["unused_statistics"] = {"norm": norm, "layers": layers}
    if settings.train.init_from is not None:
        folder, patterns = Path(settings.train.init_from), settings.train.init_patterns
        values, facts["init_from"] = _from_run(folder, values, patterns, worker.resolved.to_dict().get("backbone", {}))
    return values, facts


def _from_run(
    folder: Path, own: Params, patterns: Sequence[str], backbone: Mapping[str, Any]
) -> tuple[Params, dict[str, Any]]:
    """Return a learner's initial values with those that a run has, and the facts of what was taken and what was not.

    Values can fit a network that computes something else from them, such as one with other strides. So the facts
    contain in which settings the backbones differ.
    """
    require_run(folder, where="train.init_from")
    saved, damaged = checkpoint.load_latest(folder / "ckpt")
    facts = {
        "run": str(folder),
        "step": saved.step,
        "manifest_sha256": checkpoint.manifest_digest(folder / "ckpt", saved.step),
        "damaged": [error.what for error in damaged],
        "backbone": _differences(saved.facts, backbone),
    }
    values, report = take_over(own, dict(sorted(saved.values.items())), patterns)
    return values, facts | report


def _differences(facts: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[str]:
    """Return in which settings the backbone of a run differs from this one; none if its checkpoint does not say."""
    config = facts.get("config")
    saved = config.get("backbone") if isinstance(config, Mapping) else None
    old, new = dict(flatten(saved if isinstance(saved, Mapping) else {})), dict(flatten(backbone))
    # Where the weights came from makes no difference once they are loaded.
    sources = {setting.rpartition(".")[2] for setting in (SETTING, PRETRAINED)}
    shared = [path for path in old if path in new and path not in sources]
    return [f"backbone.{path} is {old[path]} there and {new[path]} here" for path in shared if old[path] != new[path]]


def take_over(own: Params, source: Params, patterns: Sequence[str]) -> tuple[Params, dict[str, Any]]:
    """Return a learner's values with those of another run in place of its own, where names and shapes fit.

    Args:
        own: The learner's own initial values.
        source: The values of the other run.
        patterns: Which values to take, as patterns of their names in `source`; all if there are none. With an arrow,
            as in `model.* -> model.0.*`, they are taken under other names. A state entry matches without `state.` too.
            Of several patterns that give a value, the last applies.

    Returns:
        The values; and a report: the names of those that were `taken`, the names of those of them that were `cast` by
        their dtypes, the names of those that were `not_taken` by reason, and the values of `source` that are `unused`.

    Raises:
        ConfigError: A pattern matches no value of `source`, or nothing fits.
    """
    # The run itself sets the entries of the training progress.
    source = {name: value for name, value in source.items() if not is_progress(name)}
    chosen = _chosen(source, patterns)
    taken: Params = {}
    cast: dict[str, list[str]] = {}
    missed: dict[str, list[str]] = {}
    for name, value in own.items():
        if is_progress(name):
            continue
        found = source.get(chosen.get(name, ""))
        if found is not None and found.shape == value.shape:
            taken[name] = found.to(value)
            if found.dtype != value.dtype:
                cast.setdefault(f"{found.dtype} to {value.dtype}", []).append(name)
        elif found is not None:
            reason = f"its shape is {list(found.shape)} there and {list(value.shape)} here"
            missed.setdefault(reason, []).append(name)
        else:
            reason = "train.init_patterns does not match it" if name in source else "that run has no such value"
            missed.setdefault(reason, []).append(name)
    if not taken:
        reasons = "; ".join(f"{reason}: {_listed(names)}" for reason, names in missed.items())
        raise ConfigError(
            f"No value of that run fits: {reasons}.",
            where="train.init_from",
            remedy="take values under other names with a pattern such as 'model.* -> model.0.*' in train.init_patterns;"
            f" the values of that run are {_listed(source)}",
        )
    used = {chosen[name] for name in taken}
    unused = [name for name in source if name not in used]
    return own | taken, {"taken": list(taken), "cast": cast, "not_taken": missed, "unused": unused}


def _chosen(source: Params, patterns: Sequence[str]) -> dict[str, str]:
    """Return the name of the value in `source` for each name under which it is taken."""
    if not patterns:
        return {name: name for name in source}
    chosen: dict[str, str] = {}
    for pattern in patterns:
        pairs = [(new, name) for name in source if (new := _renamed(name, pattern)) is not None]
        if not pairs:
            # For its error: the part before an arrow matches no name either.
            matching(source, [pattern.partition(_ARROW)[0].strip()], where="train.init_patterns")
        chosen |= dict(pairs)
    return chosen


def _renamed(name: str, pattern: str) -> str | None:
    """Return the name under which a value is taken, or None if the pattern does not match its name."""
    before, arrow, after = (part.strip() for part in pattern.partition(_ARROW))
    if not arrow:
        return name if matching([name], [before]) else None
    stars = before.count("*"), after.count("*")
    if not (before and after) or stars not in ((0, 0), (1, 1)) or any(char in pattern for char in "?[]"):
        raise ConfigError(
            f"The pattern {shown(pattern)} should have one '*' on both sides of the arrow, or none, and no other"
            " wildcard.",
            where="train.init_patterns",
            remedy="write, for example, 'model.* -> model.0.*'",
        )
    for prefix in (STATE, ""):
        if name.startswith(prefix) and (new := _translated(name.removeprefix(prefix), before, after)) is not None:
            return prefix + new
    return None


def _translated(name: str, before: str, after: str) -> str | None:
    """Return `after` with what the '*' of `before` stands for in a name; None if `before` does not match the name."""
    head, star, tail = before.partition("*")
    if not star:
        return after if name == before else None
    matches = name.startswith(head) and name.endswith(tail) and len(name) >= len(head) + len(tail)
    return after.replace("*", name[len(head) : len(name) - len(tail)]) if matches else None


def require_own_start(resolved: Resolved) -> None:
    """Raise `CheckpointError` if a run without checkpoints has taken its initial values from elsewhere.

    Such a run begins with a checkpoint of them, and what they were taken from may have changed since.
    """
    if found := sources(resolved):
        raise CheckpointError(
            f"The checkpoints of this run are missing, with the initial values that {' and '.join(found)} named.",
            where="--resume",
            remedy="start a new run from its config.toml",
        )


def require_same_start(before: Mapping[str, Any], resolved: Resolved) -> None:
    """Raise `ConfigError` if a resume changes which values a run begins with, or which of them never change.

    The change would have no effect, or leave the outer optimiser with a state for other values.

    Args:
        before: The settings that are saved with the checkpoint, nested as in a run file.
        resolved: The configuration to resume with.
    """
    saved, now = (dict(flatten(dict(values))) for values in (before, resolved.to_dict()))
    for path in _START:
        old, new = saved.get(path) or None, now.get(path) or None
        if old != new:
            raise ConfigError(
                f"{path} was {shown(old)} when the run began; it cannot be changed to {shown(new)}.",
                where=path,
                remedy="leave it out, or start a new run that takes over the values of this one (--init-from)",
            )


def frozen_values(worker: Worker) -> list[str]:
    """Return the names of the values that `train.freeze` keeps as they are.

    Raises:
        ConfigError: A pattern matches no value, or outer steps are to be taken but every parameter is frozen.
    """
    if not (patterns := worker.settings.train.freeze):
        return []
    values = worker.initial()
    names = matching([name for name in values if not is_progress(name)], patterns, where="train.freeze")
    if worker.settings.train.steps and not split_state(values, patterns)[0]:
        raise ConfigError(
            "Every parameter of the learner is frozen, so the outer steps would train nothing.",
            where="train.freeze",
            remedy="freeze less, or set train.steps to 0 to evaluate the learner as it is",
        )
    return list(names)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
