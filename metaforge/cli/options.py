"""The flags that several commands share, and the configuration that the flags of `train` and `config` describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from metaforge.cli.output import print_note
from metaforge.registry.entry import KINDS

if TYPE_CHECKING:
    from metaforge.config.resolved import Resolved
    from metaforge.config.sources import Layer
    from metaforge.registry.registry import Registry
    from metaforge.runs.checkpoint import Which

# The largest seed, and the largest number of an episode: both are 64-bit signed integers.
MAX_INTEGER = 2**63 - 1

Learner = Annotated[
    str | None, typer.Option("--learner", "-l", help="Learner; `metaforge list-plugins` lists them all.")
]
Dataset = Annotated[str | None, typer.Option("--dataset", "-d", help="Data set.")]
Backbone = Annotated[str | None, typer.Option("--backbone", help="Network that computes features of the inputs.")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="Adapters in order, separated by commas.")]
RegularizerSet = Annotated[str | None, typer.Option("--regularizer", help="Regularizers, separated by commas.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", help="Optimiser of the outer loop.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="Schedule of the outer learning rate.")]
PresetSet = Annotated[str | None, typer.Option("--preset", help="Presets, separated by commas; the last applies.")]
HookSet = Annotated[str | None, typer.Option("--hook", help="Hook plugins in order, separated by commas.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Run file (TOML) to start from.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting, e.g. train.lr=0.01 or learner.steps=3. Repeatable."),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Number of outer steps.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Training time after which to stop: 90s, 10m, 1h30m.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the run.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/DATASET-LEARNER-TIME.")]
InitFrom = Annotated[
    str | None, typer.Option("--init-from", metavar="RUN", help="Run folder whose values are the initial ones.")
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="PATTERN", help="Values that stay as they are, e.g. 'model.0.*'. Repeatable."),
]
Resume = Annotated[
    Path | None, typer.Option("--resume", help="Run folder of a run to resume from its last valid checkpoint.")
]
AcceptPlugins = Annotated[
    bool, typer.Option("--accept-plugins", help="Resume even if the versions of plugins have changed.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, train one step, evaluate two tasks, write nothing.")
]
EvaluateAfter = Annotated[bool, typer.Option("--evaluate", help="Evaluate the run after training.")]
Processes = Annotated[
    int, typer.Option("--nproc", min=1, max=1024, help="Number of processes on this machine; torchrun works as well.")
]
Restarts = Annotated[
    int, typer.Option("--max-restarts", min=0, help="How often failed processes are restarted (with --nproc).")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]
KindOption = Annotated[str | None, typer.Option("--kind", "-k", help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.")]


class RunFlags(NamedTuple):
    """The flags of `train` and `config` that describe a run; None stands for a flag that was not set."""

    learner: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    adapter: str | None = None
    regularizer: str | None = None
    optimizer: str | None = None
    schedule: str | None = None
    hook: str | None = None
    preset: str | None = None
    steps: int | None = None
    budget: str | None = None
    seed: int | None = None
    device: str | None = None
    config: Path | None = None
    settings: Sequence[str] | None = None
    init_from: str | None = None
    freeze: Sequence[str] | None = None

    def layers(self) -> list[Layer]:
        """Return the layers of configuration that the flags describe, lowest priority first."""
        flags = {
            "--learner": ("learner.name", self.learner),
            "--dataset": ("dataset.name", self.dataset),
            "--backbone": ("backbone.name", self.backbone),
            "--adapter": ("adapters", self.adapter),
            "--regularizer": ("regularizers", self.regularizer),
            "--optimizer": ("optimizer.name", self.optimizer),
            "--schedule": ("schedule.name", self.schedule),
            "--hook": ("hooks", self.hook),
            "--preset": ("presets", self.preset),
            "--steps": ("train.steps", self.steps),
            "--budget": ("train.budget", self.budget),
            "--seed": ("seed", self.seed),
            "--device": ("device", self.device),
            "--init-from": ("train.init_from", self.init_from),
            "--freeze": ("train.freeze", list(self.freeze) if self.freeze else None),
        }
        return config_layers(self.config, self.settings, flags)

    def resolve(self, *, complete: bool = True, folder: Path | None = None) -> tuple[Registry, Resolved]:
        """Return the installed plugins and the resolved configuration, and print its notes on stderr.

        Args:
            complete: Require a learner and a data set.
            folder: Folder of an existing run, whose configuration the flags change.
        """
        from metaforge.config.resolve import resolve

        registry = scan_plugins()
        if folder is not None:
            from metaforge.runs.resume import configuration

            resolved = configuration(folder, self.layers(), registry)
        else:
            resolved = resolve(self.layers(), registry, complete=complete)
        for note in resolved.notes:
            print_note(f"Note: {note}")
        return registry, resolved


def config_layers(
    config: Path | None, settings: Sequence[str] | None, flags: Mapping[str, tuple[str, Any]]
) -> list[Layer]:
    """Return the layers of configuration of a run file (if any), of `--set` and of other flags.

    `flags` maps a flag to the path of its setting and its value; None stands for a flag that was not set.
    """
    from metaforge.config.sources import file_layer, flags_layer, parse_setting

    values = [(flag, path, value) for flag, (path, value) in flags.items() if value is not None]
    for setting in settings or ():
        path, value = parse_setting(setting)
        values.append((f"--set {path}", path, value))
    files = [file_layer(config)] if config is not None else []
    return [*files, flags_layer(values)]


def parse_integers(flag: str, text: str | None) -> list[int] | None:
    """Return the integers of a flag such as `--shots 1,5,10`, None if it was not set; `ConfigError` if invalid."""
    from metaforge.errors import ConfigError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} is {text!r}, but should be integers separated by commas, e.g. 1,5,10.") from error


def parse_kind(kind: str | None) -> str | None:
    """Return the kind of plugin that `--kind` names, in the singular or the plural; None if it was not set."""
    from metaforge.registry.entry import kind_called

    return None if kind is None else kind_called(kind)


def scan_plugins() -> Registry:
    """Return the installed plugins, and print on stderr what could not be read."""
    from metaforge.registry.scan import scan

    registry = scan()
    for note in registry.notes:
        print_note(f"Note: {note}")
    return registry


def parse_checkpoint(text: str) -> Which:
    """Return the value of `--checkpoint`: latest, best, or the number of an outer step."""
    from metaforge.errors import ConfigError

    if text in ("latest", "best"):
        return "best" if text == "best" else "latest"
    if not (text.isdecimal() and text.isascii() and len(text) < 20):
        raise ConfigError(f"--checkpoint is {text!r}, but should be latest, best or a step.")
    return int(text)


def require_run_folder(run: Path) -> None:
    """Raise `ConfigError` if there is no such folder."""
    from metaforge.errors import ConfigError

    if not run.is_dir():
        raise ConfigError(
            f"There is no run folder {run}.", remedy="`metaforge train` creates a run folder and prints its path"
        )
