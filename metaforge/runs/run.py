"""A trained run: apply its learner, evaluate it, and write its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import task_kind
from metaforge.authoring.protocols import Dataset, Learner, Params, Task, TaskSpec
from metaforge.config.resolve import resolve
from metaforge.config.resolved import Resolved
from metaforge.config.settings import Sampler
from metaforge.config.sources import file_layer
from metaforge.data.checks import expected_spec, expected_tasks
from metaforge.data.varied import varied_spec
from metaforge.engine.batch import prepare_tasks
from metaforge.engine.contract import checked_values
from metaforge.registry.registry import Registry
from metaforge.results import report_page, run_pictures
from metaforge.results.evaluate import evaluate_run
from metaforge.runs import checkpoint
from metaforge.runs.assembly import Components
from metaforge.runs.data_record import DataRecord, read_data_record
from metaforge.runs.folder import require_run
from metaforge.runs.resume import check_values, damage_of, recorded_plugins
from metaforge.system import machine
from metaforge.system.files import require_writable


@dataclass(frozen=True)
class Run:
    """A trained learner with its configuration and its values.

    To apply it: `learner, task = run.learner(), run.task()`, then `fast = learner.adapt(run.values, task.support)` and
    `logits = learner.predict(run.values, fast, task.query.x)`.

    Attributes:
        folder: The run folder; None after a dry run.
        resolved: The configuration.
        parts: The plugins of the run as objects.
        values: The trained values of the learner.
        device: The device of the values.
        summary: After training, the outcome and what `status.json` records with it; after loading, `steps` (the step
            of the checkpoint) and `damaged` (one line for each later checkpoint that is damaged).
        data: After loading, what the folder records of the data set; None if it records nothing.
    """

    folder: Path | None
    resolved: Resolved
    parts: Components
    values: Params
    device: torch.device
    summary: dict[str, Any] = field(default_factory=dict)
    data: DataRecord | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.parts.dtype

    @property
    def dataset(self) -> Dataset:
        """The data set of the run."""
        return self.parts.dataset

    def spec(self, split: str | None = None, *, shots: int | None = None) -> TaskSpec:
        """Return the spec of tasks of the shape `task`, or with another split or number of shots.

        What the folder of a loaded run records is used without the data set.
        """
        split, shape = self.resolved.run.evaluate.split if split is None else split, self.parts.task_shape
        shape = shape if shots is None else shape._replace(shots=shots)
        recorded = None if self.data is None else self.data.spec(task_kind(self.dataset.kind), split, shape)
        if recorded is not None:
            return recorded
        with self.resolved.running_errors("spec", owner=self.resolved.dataset):
            return expected_spec(self.dataset, self.dataset.spec(split, shape), shape)

    def evaluated_spec(self) -> TaskSpec:
        """Return the spec of the tasks that the run is evaluated on; of varied tasks, that of the most classes.

        What the folder of a loaded run records is used without the data set.
        """
        settings, bounds = self.resolved.run.evaluate, self.parts.evaluation_bounds
        if bounds is None or settings.shots:
            return self.spec(shots=next(iter(settings.shots), None))
        split = settings.split
        recorded = None if self.data is None else self.data.varied_spec(task_kind(self.dataset.kind), split)
        if recorded is not None:
            return recorded
        with self.resolved.running_errors("spec", owner=self.resolved.dataset):
            return varied_spec(self.dataset, split, bounds)

    def class_names(self, split: str | None = None) -> tuple[str, ...]:
        """Return the names of a split's classes, by default of the one that the run is evaluated on.

        They are in the order of the classes' numbers; none if the data set offers none. What the folder of a loaded run
        records is used without the data set.
        """
        split = self.resolved.run.evaluate.split if split is None else split
        if self.data is not None and split in self.data.classes:
            return tuple(self.data.classes[split])
        with self.resolved.running_errors("class_names", owner=self.resolved.dataset):
            return tuple(self.dataset.class_names(split))

    def learner(self, spec: TaskSpec | None = None) -> Learner:
        """Return the learner for tasks of a spec, by default those of the shape `task`."""
        return self.parts.learner(spec or self.spec())

    def task(
        self, index: int = 0, *, split: str | None = None, seed: int | None = None, shots: int | None = None
    ) -> Task:
        """Return one task, ready for the learner: on the device of the run, with images as floats in [0, 1].

        Args:
            index: The number of the episode.
            split: The split; by default the one that the run is evaluated on.
            seed: The seed of the episodes; by default that of the evaluation.
            shots: Support examples per class; by default those of the run.
        """
        settings = self.resolved.run.evaluate
        split = settings.split if split is None else split
        spec = self.spec(split, shots=shots)
        with self.resolved.running_errors("sample", owner=self.resolved.dataset):
            batch = self.dataset.sample(split, spec.shape, index, 1, seed=settings.seed if seed is None else seed)
            batch = expected_tasks(self.dataset, batch, spec, 1)
        return prepare_tasks(one_task(batch), self.device, self.dtype)

    def evaluate(
        self,
        *,
        ways: int | None = None,
        shots: Sequence[int] | None = None,
        queries: int | None = None,
        steps: Sequence[int] | None = None,
        tasks: int | None = None,
        split: str | None = None,
        seed: int | None = None,
        sampler: Sampler | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Evaluate the run on test tasks; write records, plots and the report to the run folder.

        Arguments that are None follow the settings of the run. Nothing is written after a dry run.

        Args:
            ways: Classes in a task.
            shots: Support examples per class, one evaluation each; empty for the number of the run.
            queries: Query examples per class.
            steps: Numbers of adaptation steps, one evaluation each; empty for 0 and the learner's own number.
            tasks: Number of test tasks.
            split: The split of the data set.
            seed: The seed of the episodes.
            sampler: Whether tasks have a fixed shape or vary within the bounds of `varied`. Numbers of ways, shots
                or queries ask for a fixed shape.
            progress: Called with (tasks evaluated so far, tasks in all); a task counts once per number of shots and of
                steps.

        Returns:
            The evaluation: mean scores with 95 % confidence intervals, chance level and nearest-neighbour floor.

        Raises:
            ConfigError: The learner cannot be evaluated like this.
            DataError: The data set cannot make such tasks.
        """
        settings = self.resolved.run.evaluate
        split = settings.split if split is None else split
        if self.folder is not None:
            require_writable(self.folder)
        found = evaluate_run(
            self,
            ways=ways,
            queries=queries,
            shots=settings.shots if shots is None else shots,
            steps=settings.steps if steps is None else steps,
            tasks=settings.tasks if tasks is None else tasks,
            split=split,
            seed=settings.seed if seed is None else seed,
            sampler=sampler,
            progress=progress,
            saved={name: self.summary[name] for name in ("steps", "damaged") if name in self.summary},
        )
        if self.folder is None:
            return {**found, "folder": None, "pictures": []}
        pictures = self.report(split=split)
        return {**found, "folder": str(self.folder), "pictures": [str(path) for path in pictures]}

    def report(self, *, split: str | None = None) -> list[Path]:
        """Draw the plots of the run, write its `report.md`, and return the paths of the plots."""
        if self.folder is None:
            return []
        drawn = run_pictures.draw(self, split=self.resolved.run.evaluate.split if split is None else split)
        report_page.write_report(self.folder)
        return drawn


def load(
    folder: Path | str,
    registry: Registry,
    *,
    device: str | None = None,
    which: checkpoint.Which = "latest",
) -> Run:
    """Load the run in a folder, with the values of one of its checkpoints.

    Args:
        folder: The run folder.
        registry: The installed plugins.
        device: The device of the values; None for that of the configuration.
        which: `"latest"` (the last valid checkpoint), `"best"` (in validation), or an outer step.

    Returns:
        The run; `summary["damaged"]` has one line for each later checkpoint that is damaged.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or belongs to another learner.
    """
    folder = Path(folder)
    require_run(folder)
    registry = registry.as_recorded(recorded_plugins(folder))
    resolved = resolve([file_layer(folder / "config.toml")], registry)
    machine.prepare(resolved.run.engine.threads)
    parts = Components(resolved)
    chosen = machine.choose_device(resolved.run.device if device is None else device)
    saved, bad = checkpoint.chosen(folder / "ckpt", which)
    values = {name: value.to(chosen) for name, value in saved.values.items()}
    summary = {"steps": saved.step, "damaged": damage_of(bad)}
    run = Run(folder, resolved, parts, values, chosen, summary, read_data_record(folder))
    learner = run.learner(run.evaluated_spec())
    with resolved.running_errors("init"):
        fresh = checked_values(learner.init(make_key(resolved.run.seed, "init")))
    check_values(saved, {name: value.to(run.dtype) for name, value in fresh.items()}, where=str(folder))
    return run
