"""The objects that a training uses: process group, computation, hooks, run folder and saver of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pluggy

from metaforge.authoring.hooks import RunInfo
from metaforge.authoring.kinds import task_kind
from metaforge.config.resolved import Resolved
from metaforge.engine.processes import World
from metaforge.registry.hook_contract import with_hooks
from metaforge.runs.data_record import DataRecord, data_record
from metaforge.runs.folder import RunFolder
from metaforge.runs.hook_calls import hook_manager
from metaforge.runs.initial_values import frozen_values, initial_state
from metaforge.runs.state import Saver, State
from metaforge.runs.worker import Worker


@dataclass(frozen=True)
class Setup:
    """The objects that a training uses; they stay the same for all of its steps.

    Attributes:
        resolved: The configuration.
        world: The process group of the run.
        worker: The computation of this process.
        hooks: The hook manager; it has no hooks on ranks other than 0.
        plugins: The hook plugins that the configuration names; their states are saved.
        folder: The run folder; None on all ranks but 0, which write nothing.
        saver: Writes checkpoints and finds them again.
        info: The description of the run that hooks receive.
        start: The state with which a new run begins; empty if its values are the learner's own.
        data: What the folder records of the data set; None on all ranks but 0.
        dry: Whether this is a dry run.
    """

    resolved: Resolved
    world: World
    worker: Worker
    hooks: pluggy.PluginManager
    plugins: Mapping[str, object]
    folder: RunFolder | None
    saver: Saver
    info: RunInfo
    start: State
    data: DataRecord | None
    dry: bool


def set_up(
    resolved: Resolved,
    path: Path,
    command: str,
    hooks: Sequence[object],
    world: World,
    *,
    dry: bool = False,
    resuming: bool = False,
) -> Setup:
    """Return everything that a training needs; the run folder is created, or reopened to resume the run.

    Args:
        resolved: The configuration.
        path: The run folder.
        command: The command line, recorded in the folder.
        hooks: Objects with hooks, called before those of the configuration.
        world: The process group of the run.
        dry: Whether this is a dry run. It compiles only if `engine.compile` is `on`, and hooks get no folder.
        resuming: Whether the folder exists already.

    Raises:
        MetaForgeError: A plugin cannot be built, or the folder cannot be created or is in use.
    """
    worker = Worker(resolved, world, dry=dry)
    frozen = frozen_values(worker)
    start, taken = (State(), {}) if resuming else initial_state(worker)
    environment = worker.environment() | taken | ({"frozen": frozen} if frozen else {})
    # The hooks get their own copy of the settings: what a hook does to it must not reach a checkpoint.
    info = RunInfo(
        None if dry else path, resolved.to_dict(), task_kind(worker.parts.dataset.kind), command, environment
    )
    saver = Saver(path, resolved.run.checkpoint, {"config": resolved.to_dict(), "environment": environment})
    plugins: dict[str, object] = {}
    manager, folder, record = hook_manager([]), None, None
    if world.is_rank_zero:
        plugins = {choice.name: choice.instantiate() for choice in resolved.hooks}
        parts = with_hooks([worker.learner, worker.parts.dataset, *worker.parts.regularizers])
        manager = hook_manager([*hooks, *parts, *plugins.values()])
        with resolved.running_errors("class_names", owner=resolved.dataset):
            record = data_record(worker.parts.dataset, worker.parts.specs)
        if resuming:
            folder = RunFolder.reopen(path)
        else:
            folder = RunFolder.create(
                path,
                config=resolved.to_toml(),
                command=command,
                environment=environment,
                data=record.model_dump(mode="json"),
                begin=(lambda: saver.save(start)) if start.values else None,
            )
    # Nothing may fail between the folder and the training, which records how the run ends.
    return Setup(resolved, world, worker, manager, plugins, folder, saver, info, start, record, dry)
