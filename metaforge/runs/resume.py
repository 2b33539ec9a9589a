"""Going on with a run: what must be as it was, what may differ and makes the run inexact, and how each is named."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.protocols import Params
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.settings import TrainConfig
from metaforge.config.sources import Layer, file_layer
from metaforge.config.toml_text import flatten
from metaforge.errors import CheckpointError, ConfigError, PluginError, printable
from metaforge.registry.registry import Registry
from metaforge.runs.checkpoint import Checkpoint
from metaforge.runs.divergence import nonfinite
from metaforge.runs.folder import RunFolder, missing_records, read_json, require_run
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge.runs.state import Saver, State

# Settings that change no weight and no figure of the training.
_HARMLESS = ("evaluate", "checkpoint", "hooks", "device")
# Where the arithmetic is done, and by what: other answers may differ in the last bits.
_ENVIRONMENT = ("device", "threads", "torch", "plan", "chunk", "compiled", "processor", "platform", "python")


def configuration(folder: Path, layers: Sequence[Layer], registry: Registry) -> Resolved:
    """Return a run's own configuration with the user's layers on top.

    Raises `PluginError` naming the distribution of a plugin that is no longer there, `ConfigError` where the layers
    choose another learner or data set.
    """
    require_run(folder, where="--resume")
    own = file_layer(folder / "config.toml")
    for key in ("learner", "dataset"):
        before = own.values.get(key, {}).get("name")
        for layer in layers:
            name = layer.values.get(key, {}).get("name", before)
            if name != before:
                raise ConfigError(
                    f"The run began with the {key} {before!r} and cannot go on with {name!r}.",
                    where=layer.origin_of(f"{key}.name"),
                    remedy="leave it out, or train a new run",
                )
    try:
        return resolve([own, *layers], registry.as_recorded(recorded_plugins(folder)))
    except PluginError as error:
        plugins = recorded_plugins(folder)
        used = "; ".join(f"{plugin} of {distribution}" for plugin, distribution in plugins.items())
        here = {f"{entry.kind} {name}" for entry in registry.entries() for name in (entry.name, entry.qualified)}
        gone = [str(distribution) for plugin, distribution in plugins.items() if plugin not in here]
        remedy = _install(gone[0]) if gone else error.remedy
        raise PluginError(error.what, where=f"{error.where}; the run was trained with {used}", remedy=remedy) from error


def _install(provenance: str) -> str:
    return f"install what it was trained with (pip install {shlex.quote('=='.join(printable(provenance).split()))})"


def recorded_plugins(folder: Path) -> Mapping[str, Any]:
    """Return distribution and version of each plugin that a run was trained with, by `kind name`, if recorded."""
    path = folder / "env.json"
    return _table(read_json(path), "plugins") if path.is_file() else {}


def restore_state(saver: Saver, run: RunInfo, fresh: Params, *, accept_plugins: bool) -> tuple[State, dict[str, Any]]:
    """Return the last valid state of a run and what is to be told of it, once all of it has been checked.

    `fresh` are initial values of the learner. A run that was ended before it saved anything begins anew. Raises
    `CheckpointError` for a state that is damaged or of another learner, `PluginError` for plugins that have changed.
    """
    found = saver.find()
    if found is None:
        return State(), {"exact": True, "differences": [], "damaged": []}
    state, saved, bad = found
    check_values(saved, fresh)
    if saved.facts["schema"] == 1:
        raise CheckpointError(
            f"The checkpoint of step {saved.step} was saved without the outer optimiser's state (schema 1).",
            where="--resume",
            remedy="`metaforge evaluate` can use it; to train on, train a new run",
        )
    if spoilt := nonfinite({**state.values, **state.training}):
        raise CheckpointError(
            f"In the checkpoint of step {saved.step} {spoilt[0]!r} is not finite.",
            where="--resume",
            remedy="train a new run from its config.toml",
        )
    OuterOptimizer(run.config.run.train, state.values, state.training)
    # In the learner's own order: sums over all entries depend on it in their last bits, and a file has another.
    state = replace(state, values={name: state.values[name] for name in fresh})
    changes = differences(saved.facts, run.config.to_dict(), run.environment, accept_plugins=accept_plugins)
    folder = saver.folder.parent
    changes += missing_records(folder, state.step)
    begun_anew = [] if (folder / "env.json").is_file() else ["There is no env.json: it begins anew."]
    facts = {
        "exact": not (state.inexact or changes),
        "differences": [*state.inexact, *changes],
        "damaged": [*damage_of(bad), *begun_anew],
        **_used_up(state, run.config.run.train, saved.facts),
    }
    # A run that has once left its path stays off it, however it goes on.
    return replace(state, inexact=(*state.inexact, *(f"{one} (after step {state.step})" for one in changes))), facts


def continue_run(folder: RunFolder, run: RunInfo, state: State, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Record that a run goes on from a state, and return what is known of it: more, where nothing is left to do."""
    known: dict[str, Any] = {"steps": state.step}
    if state.step:
        known["seconds"] = state.seconds
    if state.skipped:
        known["skipped"] = list(state.skipped)
    try:
        status = read_json(folder.path / "status.json")
    except ConfigError:
        status = {}  # It is shown, and nothing depends on it.
    kept = ("tasks_per_second", "loss", "score") if status.get("steps") == state.step else ()
    train = run.config.run.train
    # The last record of a run that has ended may have come before its time. The state then still has the window of
    # tasks that it told of, and a later record tells of them again.
    early = bool(state.window) and not state.is_over(train.steps, train.budget)
    folder.resumed(
        state.step, recorded=state.step - early, config=run.config.to_toml(), command=run.command, facts=facts
    )
    resumed = {"resumed": {"step": state.step, **facts}}
    return known | {name: status[name] for name in kept if isinstance(status.get(name), float)} | resumed


def damage_of(bad: Sequence[CheckpointError]) -> list[str]:
    """Return what is wrong with each of some checkpoints, in a line each."""
    return [f"{error.what} ({error.where})" for error in bad]


def _used_up(state: State, config: TrainConfig, saved: Mapping[str, Any]) -> dict[str, str]:
    """Return a note for a run that has nothing left to do; raise `ConfigError` where a new setting has made it so."""
    if not state.is_over(config.steps, config.budget):
        return {}
    what = f"Nothing is left to do: the run has taken {state.step} steps in {state.seconds:.4g} s."
    remedy = f"give --steps larger than {state.step}"
    if config.budget is not None:
        remedy += f" and --budget larger than {state.seconds:.4g}s"
    for name, before in _table(_table(saved, "config"), "train").items():
        if name in ("steps", "budget") and before != getattr(config, name):
            raise ConfigError(what, where=f"train.{name} = {getattr(config, name)}", remedy=remedy)
    return {"note": f"{what} To go on, {remedy}."}


def check_values(saved: Checkpoint, fresh: Params, *, where: str = "--resume") -> None:
    """Raise `CheckpointError` unless saved values are those of the learner: names, shapes and precision."""
    for name in [*fresh, *(name for name in saved.values if name not in fresh)]:
        ours, theirs = (
            None if one is None else f"{tuple(one.shape)} {one.dtype}"
            for one in (fresh.get(name), saved.values.get(name))
        )
        if ours != theirs:
            raise CheckpointError(
                f"The checkpoint of step {saved.step} is not one of this learner: {name} is {theirs or 'missing'},"
                f" but should be {ours or 'absent'}.",
                where=where,
                remedy="use the run with the options that it was trained with",
            )


def differences(
    saved: Mapping[str, Any], config: Mapping[str, Any], environment: Mapping[str, Any], *, accept_plugins: bool
) -> list[str]:
    """Return each difference that keeps the run from going on exactly as it would have, as `what: before -> now`.

    Raises `PluginError` where a plugin has another version now, unless those are accepted.
    """
    before, now = _table(saved, "environment"), environment
    was = {str(name): str(version) for name, version in _table(before, "plugins").items()}
    has = now.get("plugins", {})
    # A component that a setting has replaced is named with that setting.
    other = [name for name in was if has.get(name, was[name]) != was[name]]
    changed = [f"{name}: {was[name]} -> {has[name]}" for name in other]
    if changed and not accept_plugins:
        raise PluginError(
            f"The run was trained with other versions of its plugins: {'; '.join(changed)}.",
            where="--resume",
            remedy=f"{_install(was[other[0]])}, or accept the difference with --accept-plugins",
        )
    # With sums in a fixed order the number of processes shows nowhere.
    compared = (*_ENVIRONMENT, *(() if _table(config, "engine").get("reduce") == "exact" else ("processes",)))
    found = changed + [
        f"{name}: {before[name]} -> {now.get(name)}"
        for name in compared
        if name in before and before[name] != now.get(name)
    ]
    old, new = (dict(flatten(dict(values))) for values in (_table(saved, "config"), config))
    for path in {**old, **new}:
        if old.get(path) != new.get(path) and not _harmless(path, new):
            found.append(f"{path}: {old.get(path)} -> {new.get(path)}")
    return found


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of what was saved, empty where there is none; raise `CheckpointError` if it is something else."""
    found = values.get(name, {})
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"What was saved as {name!r} is no table.", where="--resume", remedy="train a new run from its config.toml"
        )
    return found


def _harmless(path: str, config: Mapping[str, Any]) -> bool:
    """Return whether a setting may change without a change of the steps that are still to come."""
    lengthens = path in ("train.steps", "train.budget") and config.get("train.schedule") == "constant"
    # The device and the threads that it came to are compared as facts of the environment.
    return lengthens or path == "engine.threads" or path.partition(".")[0] in _HARMLESS
