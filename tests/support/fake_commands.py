"""Plugins for tests of the commands, and a record of what the commands call in place of the functions that compute."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from typer.testing import CliRunner, Result

from metaforge.authoring.kinds import TaskKind
from metaforge.authoring.protocols import Adapter, Dataset, Examples, Learner, Options, Task, TaskShape, TaskSpec
from metaforge.cli.app import app
from metaforge.errors import DataError
from metaforge.registry.entry import Entry
from metaforge.registry.registry import Registry


def run_command(line: str) -> Result:
    """Run `metaforge` with arguments separated by spaces, in this process."""
    return CliRunner().invoke(app, line.split())


class Guess(Learner):
    """Guesses."""

    class Config(Options):
        courage: float = Field(default=0.5, ge=0, le=1, description="How bold.")

    def __init__(self, config: Any, parts: Any) -> None: ...
    def init(self, key: Any) -> Any: ...
    def adapt(self, values: Any, support: Any, *, steps: Any = None, key: Any = None) -> Any: ...
    def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any: ...
    def loss(self, values: Any, task: Any, key: Any) -> Any: ...


class Dots(Dataset):
    """Dots."""

    class Config(Options):
        size: int = Field(default=2, ge=1, description="Size.")

    kind: ClassVar[Any] = "classification"
    note: ClassVar[str] = "made of dots"

    def __init__(self, config: Any, *, root: Path) -> None:
        self.config = config

    def spec(self, split: str, shape: TaskShape) -> TaskSpec:
        if shape.ways > 9:
            raise DataError("The split has 9 classes.", where=split, remedy="use at most 9 ways")
        return TaskSpec("classification", (1, self.config.size, self.config.size), shape.ways, shape)

    def sample(self, split: str, shape: TaskShape, first: int, count: int, *, seed: int) -> Task:
        x_shape = self.spec(split, shape).x_shape

        def examples(per_class: int) -> Examples:
            y = torch.arange(shape.ways).repeat(count, per_class)
            return Examples(torch.full((*y.shape, *x_shape), float(first)), y)

        return Task(examples(shape.shots), examples(shape.queries))

    def facts(self, split: str) -> Mapping[str, str | int | float]:
        if split == "val":
            raise DataError("No val split.", where=split, remedy="use another")
        return {"classes": 9}

    @classmethod
    def fetch(cls, root: Path, progress: Any = None) -> list[Path]:
        for done in range(0, 101, 10):
            progress("dots.zip", done, 100)
        return [root / "dots.zip"]


class Halving(Adapter):
    """Halves the gradient.

    It has no state.
    """

    class Config(Options):
        rate: float | None = Field(default=0.5, gt=0, le=1, description="Factor of the gradient.")
        mode: str = Field(default="soft", description="A mode.")

    reference = "A. Author 2020"

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


def mixed_registry() -> Registry:
    """Return a registry with plugins that are ready, ambiguous, incompatible, and impossible to import."""
    entries = [
        Entry("learner", "twin", "zoo:Twin", "left", "1.0", "A [red]twin\x1b[2J.", "ready"),
        Entry("learner", "twin", "zoo:Twin", "right", "2.0"),
        Entry("dataset", "halving", "nowhere:Halving", "zoo", "1.0", "Cannot be imported."),
        Entry("hook", "old", "zoo:Old", "zoo", "1.0", state="incompatible", reason="it requires metaforge>=99"),
    ]
    return Registry(entries).with_plugin("adapter", "halving", Halving)


class Calls(list[SimpleNamespace]):
    """The arguments of each call; if `error` is set, training raises it instead."""

    error: BaseException | None = None


def record_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Install `guess` and `dots`; replace training, loading and drawing by functions that record their arguments."""
    registry = Registry([]).with_plugin("learner", "guess", Guess).with_plugin("dataset", "dots", Dots)
    monkeypatch.setattr("metaforge.registry.scan.scan", lambda: registry)
    calls = Calls()

    def run_training(
        resolved: Any,
        *,
        folder: Any,
        command: str,
        dry_run: bool,
        hooks: Any,
        resuming: bool,
        accept_plugins: bool,
    ) -> Any:
        if calls.error is not None:
            raise calls.error
        calls.append(SimpleNamespace(resolved=resolved, folder=folder, command=command, dry_run=dry_run, hooks=hooks))
        return SimpleNamespace(
            folder=None if dry_run else folder or Path("runs/new"),
            summary={"loss": 0.25, "steps": resolved.run.train.steps},
        )

    def load(folder: Path, registry: Any, *, device: str | None = None, which: Any = "latest") -> Any:
        def evaluate(**settings: Any) -> dict[str, Any]:
            calls.append(SimpleNamespace(folder=folder, device=device, which=which, **settings))
            return {"accuracy": {"mean": 0.5}}

        return SimpleNamespace(evaluate=evaluate, summary={"damaged": ["state.json is damaged"]})

    def episode_grid(task: Task, path: Path, kind: TaskKind, *, grid: tuple[int, ...]) -> None:
        calls.append(SimpleNamespace(task=task, kind=kind))
        path.write_bytes(b"picture")

    for name, function in [
        ("metaforge.runs.training", run_training),
        ("metaforge.runs.run", load),
        ("metaforge.results.episode_picture", episode_grid),
    ]:
        module = ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    return calls
