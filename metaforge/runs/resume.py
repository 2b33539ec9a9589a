"""Resume a run: check what must match, and list the differences that make the resumed run inexact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metaforge.authoring.progress import is_share
from metaforge.authoring.protocols import Learner, Params
from metaforge.config.plugin_defaults import KNOWN
from metaforge.config.renamed import renamed
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.settings import TrainConfig
from metaforge.config.sources import Layer, file_layer, normalise
from metaforge.config.toml_text import flatten
from metaforge.errors import CheckpointError, ConfigError, PluginError
from metaforge.registry.registry import Registry, install_remedy
from metaforge.runs.checkpoint import Checkpoint
from metaforge.runs.divergence import nonfinite
from metaforge.runs.folder import RunFolder, missing_records, read_json, require_run
from metaforge.runs.initial_values import require_own_start, require_same_start
from metaforge.runs.state import Saver, State

# Settings that change neither the weights nor the metrics of the training.
_HARMLESS = ("evaluate", "checkpoint", "hooks", "device")
# Facts about the environment: if one of them differs, results may differ in their last bits.
_ENVIRONMENT = ("device", "threads", "torch", "plan", "chunk", "compiled", "processor", "platform", "python")
# The most changes that a run remembers over all its resumes, however often it is restarted.
_MOST_CHANGES = 200


def configuration(folder: Path, layers: Sequence[Layer], registry: Registry) -> Resolved:
    """Return the configuration of a run, overridden by the layers of the user.

    Args:
        folder: The run folder.
        layers: The settings that the user changes, the lowest layer first.
        registry: The installed plugins.

    Raises:
        PluginError: A plugin of the run is no longer installed; the error names its distribution.
        ConfigError: The layers choose another learner or data set.
    """
    require_run(folder, where="--resume")
    own, *layers = [normalise(layer, KNOWN) for layer in (file_layer(folder / "config.toml"), *layers)]
    for key in ("learner", "dataset"):
        before = own.values.get(key, {}).get("name")
        for layer in layers:
            name = layer.values.get(key, {}).get("name", before)
            if name != before:
                raise ConfigError(
                    f"The run was trained with the {key} {before!r} and cannot be resumed with {name!r}.",
                    where=layer.origin_of(f"{key}.name"),
                    remedy="leave it out, or start a new run",
                )
    try:
        return resolve([own, *layers], registry.as_recorded(recorded_plugins(folder)))
    except PluginError as error:
        used = "; ".join(f"{plugin} of {provenance}" for plugin, provenance in recorded_plugins(folder).items())
        where = f"{error.where}; the run was trained with {used}" if error.where else f"the run was trained with {used}"
        raise PluginError(error.what, where=where, remedy=error.remedy) from error


def recorded_plugins(folder: Path) -> Mapping[str, Any]:
    """Return the distribution and version of each plugin that a run was trained with, by `kind name`, if recorded."""
    path = folder / "env.json"
    return _table(read_json(path), "plugins") if path.is_file() else {}


def restore_state(
    saver: Saver, resolved: Resolved, environment: Mapping[str, Any], initial: Params, *, accept_plugins: bool
) -> tuple[State, dict[str, Any]]:
    """Return the last valid state of a run after checking all of it, and facts about the resume.

    Args:
        saver: Finds the checkpoints of the run.
        resolved: The configuration to resume with.
        environment: The environment of this process, as `env.json` records it.
        initial: The initial values of the learner, whose names, shapes and dtypes the saved ones must have.
        accept_plugins: Whether plugins may have other versions than those that the run was trained with.

    Returns:
        The state, empty if nothing was saved yet; and the facts `exact` (whether the run continues bit-exactly),
        `differences` (why it does not), `damaged` (what is wrong with later checkpoints, and whether `env.json` is
        missing), and a `note` if there is nothing left to do.

    Raises:
        CheckpointError: The state is damaged or belongs to another learner.
        PluginError: A plugin now has another version, and `accept_plugins` is false.
        ConfigError: There is nothing left to do because of a changed setting, or the setting cannot be changed.
    """
    found = saver.find()
    if found is None:
        require_own_start(resolved)
        return State(), {"exact": True, "differences": [], "damaged": []}
    state, saved, errors = found
    train = resolved.run.train
    require_same_start(renamed(_table(saved.facts, "config"))[0], resolved)
    _require_resumable(state, saved, initial)
    # Entries in a file are sorted by name. The last bits of sums over all entries depend on the order of the learner.
    state = replace(state, values={name: state.values[name] for name in initial})
    changes = differences(saved.facts, resolved, environment, values=initial, accept_plugins=accept_plugins)
    folder = saver.folder.parent
    changes += missing_records(folder, state.step)
    no_environment = [] if (folder / "env.json").is_file() else ["There is no env.json: a new one is written."]
    facts = {
        "exact": not (state.inexact or changes),
        "differences": [*state.inexact, *changes],
        "damaged": [*damage_of(errors), *no_environment],
        **_nothing_left(state, train, saved.facts),
    }
    # A run that was once resumed inexactly stays inexact. Every resume may add lines: only the last ones are kept.
    inexact = (*state.inexact, *(f"{change} (after step {state.step})" for change in changes))[-_MOST_CHANGES:]
    return replace(state, inexact=inexact), facts


def _require_resumable(state: State, saved: Checkpoint, initial: Params) -> None:
    """Raise `CheckpointError` unless training can continue from a checkpoint."""
    check_values(saved, initial)
    if saved.facts["schema"] == 1:
        raise CheckpointError(
            f"The checkpoint of step {saved.step} was saved without the state of the outer optimiser (schema 1).",
            where="--resume",
            remedy="`metaforge evaluate` can use it; to train further, start a new run",
        )
    if bad := nonfinite({**state.values, **state.training}):
        raise CheckpointError(
            f"In the checkpoint of step {saved.step} {bad[0]!r} is not finite.",
            where="--resume",
            remedy="start a new run from its config.toml",
        )


def continue_run(
    folder: RunFolder | None, resolved: Resolved, command: str, state: State, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Record in a run folder that the run is resumed from a state; return what `status.json` shows from the start.

    Args:
        folder: The run folder, reopened; None on all ranks but 0, which record nothing.
        resolved: The configuration to resume with; it replaces the recorded one.
        command: The command line that resumes the run; it is appended to the recorded ones.
        state: The restored state.
        facts: The facts of `restore_state`.
    """
    known: dict[str, Any] = {"steps": state.step}
    if state.step:
        known["seconds"] = state.seconds
    if state.skipped:
        known["skipped"] = list(state.skipped)
    known["resumed"] = {"step": state.step, **facts}
    if folder is None:
        return known
    try:
        status = read_json(folder.path / "status.json")
    except ConfigError:
        status = {}  # It is only displayed; nothing depends on it.
    kept = ("tasks_per_second", "loss", "score") if status.get("steps") == state.step else ()
    train = resolved.run.train
    # The last record of a run that ended may have been written before it was due. Its metrics are then still in the
    # window of the state, and the next regular record contains them, so that last record is removed.
    early = bool(state.window) and not state.is_over(train.steps, train.budget)
    folder.resumed(state.step, recorded=state.step - early, config=resolved.to_toml(), command=command, facts=facts)
    return known | {name: status[name] for name in kept if isinstance(status.get(name), float)}


def damage_of(errors: Sequence[CheckpointError]) -> list[str]:
    """Return one line for each damaged checkpoint."""
    return [f"{error.what} ({error.where})" for error in errors]


def _nothing_left(state: State, config: TrainConfig, saved: Mapping[str, Any]) -> dict[str, str]:
    """Return a note if the run has nothing left to do; raise `ConfigError` if a changed setting is the reason."""
    if not state.is_over(config.steps, config.budget):
        return {}
    what = f"Nothing is left to do: the run has taken {state.step} steps in {state.seconds:.4g} s."
    remedy = f"give --steps larger than {state.step}"
    if config.budget is not None:
        remedy += f" and --budget larger than {state.seconds:.4g}s"
    for name, before in _table(_table(saved, "config"), "train").items():
        if name in ("steps", "budget") and before != getattr(config, name):
            raise ConfigError(what, where=f"train.{name} = {getattr(config, name)}", remedy=remedy)
    return {"note": f"{what} To train further, {remedy}."}


def check_values(saved: Checkpoint, expected: Params, *, where: str = "--resume") -> None:
    """Raise `CheckpointError` unless saved values have the names, shapes and dtypes of the learner's."""
    for name in [*expected, *(name for name in saved.values if name not in expected)]:
        ours, theirs = (
            None if value is None else f"{tuple(value.shape)} {value.dtype}"
            for value in (expected.get(name), saved.values.get(name))
        )
        if ours != theirs:
            raise CheckpointError(
                f"The checkpoint of step {saved.step} does not belong to this learner: {name} is {theirs or 'missing'},"
                f" but should be {ours or 'absent'}.",
                where=where,
                remedy="use the run with the options that it was trained with",
            )


def differences(
    saved: Mapping[str, Any],
    resolved: Resolved,
    environment: Mapping[str, Any],
    *,
    values: Iterable[str],
    accept_plugins: bool,
) -> list[str]:
    """Return each difference that makes the resumed run inexact, as `what: before -> now`.

    Args:
        saved: The facts of the checkpoint.
        resolved: The configuration to resume with.
        environment: The environment of this process.
        values: The names of the learner's values.
        accept_plugins: Whether plugins may have other versions than those that the run was trained with.

    Raises:
        PluginError: A plugin now has another version, and `accept_plugins` is false.
    """
    before = _table(saved, "environment")
    old_plugins = {str(name): str(version) for name, version in _table(before, "plugins").items()}
    new_plugins = environment.get("plugins", {})
    # A plugin that is no longer part of the run was replaced by a setting, which is compared below.
    changed = [name for name, version in old_plugins.items() if new_plugins.get(name, version) != version]
    differing = [f"{name}: {old_plugins[name]} -> {new_plugins[name]}" for name in changed]
    if differing and not accept_plugins:
        raise PluginError(
            f"The run was trained with other versions of its plugins: {'; '.join(differing)}.",
            where="--resume",
            remedy=f"{install_remedy(old_plugins[changed[0]])}, or accept the difference with --accept-plugins",
        )
    # If sums are added in a fixed order, the number of processes does not change the result.
    compared = (*_ENVIRONMENT, *(() if resolved.run.engine.reduce == "exact" else ("processes",)))
    differing += [
        f"{name}: {before[name]} -> {environment.get(name)}"
        for name in compared
        if name in before and before[name] != environment.get(name)
    ]
    old_config, _ = renamed(_table(saved, "config"))
    old, new = dict(flatten(old_config)), dict(flatten(resolved.to_dict()))
    # What a table of the checkpoint lacks is newer than the checkpoint, which was computed as if it had its default.
    old = {path: value for path, value in flatten(resolved.defaults()) if _is_newer(path, old)} | old
    reads_share = _reads_share(resolved, values)
    for path in {**old, **new}:
        if old.get(path) != new.get(path) and not _harmless(path, reads_share=reads_share):
            differing.append(f"{path}: {old.get(path)} -> {new.get(path)}")
    return differing


def _is_newer(path: str, old: Iterable[str]) -> bool:
    """Return whether a setting is in a table that the paths `old` have, but is not among them itself."""
    table = f"{path.rpartition('.')[0]}."
    holds = any(known.startswith(table) for known in old)
    return holds and not any(f"{known}.".startswith(f"{path}.") for known in old)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of saved facts, empty if it is missing; raise `CheckpointError` if it is not a table."""
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise CheckpointError(
            f"The saved value of {name!r} is not a table.",
            where="--resume",
            remedy="start a new run from its config.toml",
        )
    return table


def _reads_share(resolved: Resolved, values: Iterable[str]) -> bool:
    """Return whether the training depends on the share of it that is done, and so on its length."""
    schedule, learner = resolved.schedule, resolved.learner
    if schedule is None or schedule.cls.uses_share or any(map(is_share, values)):
        return True
    return learner is None or learner.cls.during is not Learner.during


def _harmless(path: str, *, reads_share: bool) -> bool:
    """Return whether a change of this setting leaves the results of the remaining steps unchanged."""
    lengthens = path in ("train.steps", "train.budget") and not reads_share
    # The device and the number of threads actually used are compared as part of the environment.
    return lengthens or path == "engine.threads" or path.partition(".")[0] in _HARMLESS
