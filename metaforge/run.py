"""A run that can be used: its learner's values, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metaforge import checkpoint, evaluation, runtime
from metaforge.components import Components
from metaforge.config import Resolved, file_layer, resolve
from metaforge.errors import ConfigError
from metaforge.protocols import Dataset, Learner, Params, TaskSpec
from metaforge.registry import Registry
from metaforge.report import gallery, page


@dataclass(frozen=True)
class Run:
    """A trained learner: its folder, its configuration and its values.

    `learner = run.learner()` is the learner of its tasks; `learner.adapt(run.values, support)` and
    `learner.predict(run.values, fast, x)` apply it to one.
    """

    folder: Path
    resolved: Resolved
    parts: Components
    values: Params
    device: torch.device
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the values."""
        return self.parts.dtype

    @property
    def dataset(self) -> Dataset:
        """The run's data set."""
        return self.parts.dataset

    def spec(self, split: str | None = None, *, shots: int | None = None) -> TaskSpec:
        """Return the spec of the tasks that the run is about."""
        shape = self.parts.task_shape
        shape = shape if shots is None else shape._replace(shots=shots)
        return self.dataset.spec(split or self.resolved.run.evaluate.split, shape)

    def learner(self, spec: TaskSpec | None = None) -> Learner:
        """Return the learner for tasks of a spec, by default those that the run is about."""
        return self.parts.learner(spec or self.spec())

    def evaluate(
        self,
        *,
        shots: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        tasks: int | None = None,
        split: str | None = None,
        seed: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, Any]:
        """Return mean scores ± 95 % CI on test tasks, and write records, pictures and the report to the run's folder.

        What is not given follows the run's `[evaluate]` settings.
        """
        settings = self.resolved.run.evaluate
        split = split or settings.split
        found = evaluation.evaluate(
            self,
            shots=shots or settings.shots or None,
            steps=steps if steps is not None else settings.steps or None,
            tasks=tasks or settings.tasks,
            split=split,
            seed=settings.seed if seed is None else seed,
            progress=progress,
        )
        pictures = self.report(split=split)
        return {**found, "folder": str(self.folder), "pictures": [str(path) for path in pictures]}

    def report(self, *, split: str | None = None) -> list[Path]:
        """Draw the run's pictures, write its `report.md`, and return the pictures' paths."""
        drawn = gallery.draw(self, split=split or self.resolved.run.evaluate.split)
        page.write_report(self.folder)
        return drawn


def load(folder: Path | str, registry: Registry) -> Run:
    """Return the run of a folder, from its `config.toml` and its latest checkpoint."""
    folder = Path(folder)
    if not (folder / "config.toml").is_file():
        raise ConfigError(
            f"{folder} is no run folder: it has no config.toml.",
            remedy="name the folder that `metaforge train` printed",
        )
    resolved = resolve([file_layer(folder / "config.toml")], registry)
    runtime.prepare(resolved.run.engine.threads)
    parts = Components(resolved)
    device = runtime.choose_device(resolved.run.device)
    saved = checkpoint.load_latest(folder / "ckpt")
    values = {name: value.to(device) for name, value in saved.values.items()}
    return Run(folder, resolved, parts, values, device, {"steps": saved.facts["step"]})
