"""The flags that `train` and `config` share, and the layers of configuration that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metaforge.config import Layer

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


# Each flag of a run, the parameter that holds it, and the setting that it means.
_FLAGS = {
    "--learner": ("learner", "learner.name"),
    "--dataset": ("dataset", "dataset.name"),
    "--backbone": ("backbone", "backbone.name"),
    "--adapter": ("adapter", "adapters"),
    "--regularizer": ("regularizer", "regularizers"),
    "--steps": ("steps", "train.steps"),
    "--budget": ("budget", "train.budget"),
    "--seed": ("seed", "seed"),
    "--device": ("device", "device"),
}


def run_layers(given: Mapping[str, Any]) -> list[Layer]:
    """Return the layers that the parameters of `train` or `config` mean."""
    flags = {flag: (path, given[parameter]) for flag, (parameter, path) in _FLAGS.items()}
    return layers(given["config"], given["settings"], flags)


def layers(config: Path | None, settings: Sequence[str] | None, flags: Mapping[str, tuple[str, Any]]) -> list[Layer]:
    """Return the layers of a file (if any) and of the flags: flag to (path, value), None where not given."""
    from metaforge.config import file_layer, flags_layer, parse_setting

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
