"""`metaforge train`, `evaluate` and `config`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metaforge import hookimpl
from metaforge.cli import options
from metaforge.cli.output import guarded, put, put_json, say
from metaforge.cli.plugins import scanned
from metaforge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metaforge.checkpoint import Which
    from metaforge.config import Resolved
    from metaforge.hooks import RunInfo
    from metaforge.registry import Registry


@guarded
def train(
    learner: options.Learner = None,
    dataset: options.Dataset = None,
    backbone: options.Backbone = None,
    adapter: options.Adapter = None,
    regularizer: options.RegularizerSet = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    device: options.Device = None,
    out: options.Out = None,
    resume: options.Resume = None,
    accept_plugins: options.AcceptPlugins = False,
    dry_run: options.DryRun = False,
    evaluate_after: options.EvaluateAfter = False,
    nproc: options.Processes = 1,
    max_restarts: options.Restarts = 0,
    no_progress: options.NoProgress = False,
    json: options.AsJson = False,
) -> None:
    """Train a learner; everything about the run is kept in a folder."""
    _require_one_way(resume, out=out, config=config, dry_run=dry_run)
    registry, resolved = _resolved(locals(), folder=resume)
    from metaforge import distributed
    from metaforge.training import run_training

    if nproc > 1 and not distributed.launched():
        raise typer.Exit(_launched(resolved, resume or out, nproc, max_restarts))
    hooks = [*([] if no_progress else _progress(registry, resolved)), _Announcement()]
    run = run_training(
        resolved,
        registry,
        folder=resume or out,
        command=shlex.join(["metaforge", *sys.argv[1:]]),
        dry_run=dry_run,
        hooks=hooks,
        resuming=resume is not None,
        accept_plugins=accept_plugins,
    )
    if distributed.rank() > 0:
        return
    answer = run.summary | ({"dry_run": True} if run.folder is None else {"folder": str(run.folder)})
    if evaluate_after and run.folder is not None:
        answer["evaluation"] = _evaluated(run.folder, registry, progress=not no_progress)
    if json:
        put_json(answer)
    else:
        _put_run(answer)


@guarded
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    ways: Annotated[int | None, typer.Option("--ways", min=1, help="Classes in a task.")] = None,
    shots: Annotated[str | None, typer.Option("--shots", help="Support examples per class, e.g. 1,5,10.")] = None,
    steps: Annotated[str | None, typer.Option("--steps", help="Adaptation steps, e.g. 0,1,5.")] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", min=1, help="Tasks to evaluate on.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split of the data set.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the tasks.")] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best (in validation), or a step.")
    ] = "latest",
    device: options.Device = None,
    no_progress: options.NoProgress = False,
    json: options.AsJson = False,
) -> None:
    """Evaluate a trained run on tasks that it has never seen; figures and pictures go into its folder."""
    from metaforge.errors import ConfigError

    chosen = {
        "ways": ways,
        "shots": options.numbers("--shots", shots),
        "steps": options.numbers("--steps", steps),
        "tasks": tasks,
        "split": split,
        "seed": seed,
    }
    if not run.is_dir():
        raise ConfigError(f"There is no run folder {run}.", remedy="`metaforge train` makes one and prints its path")
    which = _which(checkpoint)
    from metaforge import distributed

    if distributed.rank() > 0:
        # The leading process does it alone.
        return
    found = _evaluated(run, scanned(), device=device, which=which, progress=not no_progress, **chosen)
    if json:
        put_json(found)
    else:
        _put_evaluation(found)


@guarded
def config(
    learner: options.Learner = None,
    dataset: options.Dataset = None,
    backbone: options.Backbone = None,
    adapter: options.Adapter = None,
    regularizer: options.RegularizerSet = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    device: options.Device = None,
    json: options.AsJson = False,
) -> None:
    """Show the configuration that the same flags give `train`, with the origin of every value; it is a run file."""
    _, resolved = _resolved(locals(), required=False)
    if json:
        put_json({"values": resolved.to_dict(), "origins": dict(resolved.origins), "notes": list(resolved.notes)})
        return
    from metaforge.config import annotated

    put(annotated(resolved))


def _require_one_way(resume: Path | None, **others: Any) -> None:
    """Raise `ConfigError` where a run is to be resumed and begun at once."""
    from metaforge.errors import ConfigError

    clashing = [f"--{name.replace('_', '-')}" for name, value in others.items() if resume is not None and value]
    if clashing:
        raise ConfigError(
            f"--resume and {clashing[0]} cannot be given together.",
            remedy="a resumed run has its folder and its configuration; change single settings with --set",
        )


def _resolved(
    given: Mapping[str, Any], *, required: bool = True, folder: Path | None = None
) -> tuple[Registry, Resolved]:
    """Return the plugins and the configuration that a command's parameters, by name, mean (on top of a run's own)."""
    from metaforge.config import resolve

    registry, layers = scanned(), options.run_layers(given)
    if folder is not None:
        from metaforge.resume import configuration

        resolved = configuration(folder, layers, registry)
    else:
        resolved = resolve(layers, registry, complete=required)
    for note in resolved.notes:
        say(f"Note: {note}")
    return registry, resolved


def _launched(resolved: Resolved, folder: Path | None, processes: int, restarts: int) -> int:
    """Run this very command in several processes, all with one folder, and return its exit code."""
    from metaforge.distributed import launch
    from metaforge.runs import default_folder

    words = sys.argv[1:]
    if folder is None:
        names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
        words = [*words, "--out", str(default_folder("-".join(names)))]
    return launch(words, processes, restarts)


def _progress(registry: Registry, resolved: Resolved) -> list[object]:
    """Return the display of progress that MetaForge's own metadata name, unless the run has chosen it itself."""
    entry = registry.default("hook")
    if entry is None:
        return []
    cls = registry.load("hook", entry.qualified)
    return [] if any(choice.cls is cls for choice in resolved.hooks) else [cls(cls.Config())]


class _Announcement:
    """Says on stderr where a run is kept: when it begins, and when it ends before its time."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Say where the run is kept and how it computes."""
        facts = {key: run.environment[key] for key in ("device", "threads", "plan", "chunk") if key in run.environment}
        if run.folder is not None:
            say(f"run folder: {run.folder}  ({', '.join(f'{key} {value}' for key, value in facts.items())})")
        if "resumed" in run.environment:
            self._say_resumed(run.start, run.environment["resumed"])

    @staticmethod
    def _say_resumed(step: int, facts: Mapping[str, Any]) -> None:
        """Say where a run goes on, which checkpoints were of no use, and what is not as it was."""
        for damaged in facts["damaged"]:
            say(f"Warning: {printable(damaged)}")
        say(f"resumed after outer step {step}{'' if facts['exact'] else ', not exactly: these have changed'}")
        for line in facts["differences"]:
            say(f"  {printable(line)}")
        if "note" in facts:
            say(facts["note"])

    @hookimpl
    def metaforge_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        """Say that what was learned is not lost."""
        if error is not None and run.folder is not None and (run.folder / "ckpt" / "LATEST").is_file():
            say(f"What was learned so far is in {run.folder}")


def _which(text: str) -> Which:
    """Return which checkpoint a flag means."""
    from metaforge.errors import ConfigError

    if text in ("latest", "best"):
        return "best" if text == "best" else "latest"
    if not (text.isdecimal() and text.isascii() and len(text) < 20):
        raise ConfigError(f"--checkpoint is {text!r}, but should be latest, best or a step.")
    return int(text)


def _evaluated(
    folder: Path,
    registry: Registry,
    *,
    progress: bool,
    device: str | None = None,
    which: Which = "latest",
    **chosen: Any,
) -> dict[str, Any]:
    from metaforge.cli.output import counting
    from metaforge.run import load
    from metaforge.signals import requests

    with requests(), counting("evaluating", show=progress) as tell:
        run = load(folder, registry, device=device, which=which)
        for damaged in run.summary["damaged"]:
            say(f"Warning: {printable(damaged)}")
        return run.evaluate(progress=tell, **chosen)


def _put_run(answer: dict[str, Any]) -> None:
    """Print what a training came to, and what can be done next."""
    evaluation, folder = answer.pop("evaluation", None), answer.get("folder")
    if answer.pop("dry_run", False):
        put("dry run: nothing was written")
    _put_facts(answer)
    if evaluation is not None:
        _put_evaluation(evaluation)
    elif folder is not None:
        say(f"Next: metaforge evaluate {shlex.quote(folder)}")


def _put_evaluation(found: dict[str, Any]) -> None:
    """Print the table of an evaluation, what must be known to read it, and where the pictures are."""
    from metaforge.cli.output import put_rich
    from metaforge.report.tables import measures_table, summary_table

    for table in (summary_table(found), measures_table(found)):
        if table is not None:
            put_rich(table)
    put(f"pictures: {', '.join(found['pictures'])}")
    put(f"report: {Path(found['folder']) / 'report.md'}")


def _put_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print nested facts as indented lines."""
    for name, value in facts.items():
        if isinstance(value, dict):
            put(f"{indent}{name}:")
            _put_facts(value, f"{indent}  ")
        else:
            put(f"{indent}{name}: {value:.6g}" if isinstance(value, float) else f"{indent}{name}: {value}")
