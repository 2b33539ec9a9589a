"""The flags that `train` and `config` share, and the layers of configuration that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from metaforge.cli.output import say

if TYPE_CHECKING:
    from metaforge.config.resolved import Resolved
    from metaforge.config.sources import Layer
    from metaforge.registry.registry import Registry

Learner = Annotated[str | None, typer.Option("--learner", "-l", help="Learner, e.g. from `metaforge list-plugins`.")]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Data set.")]
Backbone = Annotated[str | None, typer.Option("--backbone", help="Network that turns inputs into features.")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="Chain of adapters: names with commas between.")]
RegularizerSet = Annotated[str | None, typer.Option("--regularizer", help="Regularizers: names with commas between.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Run file (TOML).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, e.g. train.lr=0.01 or learner.steps=3; may be repeated."),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Outer steps.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Stop after this time, e.g. 90s, 10m, 1h30m.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/DATASET-LEARNER-TIME.")]
Resume = Annotated[
    Path | None, typer.Option("--resume", help="Go on with the run of this folder after its last checkpoint.")
]
AcceptPlugins = Annotated[
    bool, typer.Option("--accept-plugins", help="Resume although plugins have other versions now.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, train one step, evaluate two tasks, write nothing.")
]
EvaluateAfter = Annotated[bool, typer.Option("--evaluate", help="Evaluate right after training.")]
Processes = Annotated[int, typer.Option("--nproc", min=1, help="Processes on this machine; torchrun works as well.")]
Restarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="How often processes that die are started again (with --nproc).")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON on stdout.")]


class RunFlags(NamedTuple):
    """The flags that describe a run, as `train` and `config` received them; None where a flag was not given."""

    learner: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    adapter: str | None = None
    regularizer: str | None = None
    steps: int | None = None
    budget: str | None = None
    seed: int | None = None
    device: str | None = None
    config: Path | None = None
    settings: Sequence[str] | None = None

    def layers(self) -> list[Layer]:
        """Return the layers of configuration that the flags mean, lowest first."""
        flags = {
            "--learner": ("learner.name", self.learner),
            "--dataset": ("dataset.name", self.dataset),
            "--backbone": ("backbone.name", self.backbone),
            "--adapter": ("adapters", self.adapter),
            "--regularizer": ("regularizers", self.regularizer),
            "--steps": ("train.steps", self.steps),
            "--budget": ("train.budget", self.budget),
            "--seed": ("seed", self.seed),
            "--device": ("device", self.device),
        }
        return layers(self.config, self.settings, flags)

    def resolved(self, *, complete: bool = True, folder: Path | None = None) -> tuple[Registry, Resolved]:
        """Return the installed plugins and the configuration that the flags mean; notes go to stderr.

        With `folder`, the flags change the configuration of the run in that folder. Unless `complete`, the learner and
        the data set may be left open.
        """
        from metaforge.config.resolve import resolve

        registry = scanned()
        if folder is not None:
            from metaforge.runs.resume import configuration

            found = configuration(folder, self.layers(), registry)
        else:
            found = resolve(self.layers(), registry, complete=complete)
        for note in found.notes:
            say(f"Note: {note}")
        return registry, found


def layers(config: Path | None, settings: Sequence[str] | None, flags: Mapping[str, tuple[str, Any]]) -> list[Layer]:
    """Return the layers of a file (if any) and of the flags: flag to (path, value), None where not given."""
    from metaforge.config.sources import file_layer, flags_layer, parse_setting

    given = [(flag, path, value) for flag, (path, value) in flags.items() if value is not None]
    for setting in settings or ():
        path, value = parse_setting(setting)
        given.append((f"--set {path}", path, value))
    found = [file_layer(config)] if config is not None else []
    return [*found, flags_layer(given)]


def numbers(flag: str, text: str | None) -> list[int] | None:
    """Return the whole numbers in a text with commas between; raise `ConfigError` for anything else."""
    from metaforge.errors import ConfigError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{flag} is {text!r}, but should be whole numbers with commas between, e.g. 1,5,10."
        ) from error


KindOption = Annotated[str | None, typer.Option("--kind", "-k", help="learner, adapter, dataset, ...")]


def scanned() -> Registry:
    """Return the registry; what could not be read is said on stderr."""
    from metaforge.registry.scan import scan

    registry = scan()
    for note in registry.notes:
        say(f"Note: {note}")
    return registry


def chosen_kind(kind: str | None) -> str | None:
    """Return the kind that --kind names, in the singular or the plural; None where it is not given."""
    from metaforge.registry.entry import kind_called

    return None if kind is None else kind_called(kind)
