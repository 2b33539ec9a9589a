"""`metaforge train`: train a learner, or resume a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metaforge import hookimpl
from metaforge.cli import options
from metaforge.cli.evaluate import evaluate_folder, put_evaluation
from metaforge.cli.output import guarded, put, put_json, say
from metaforge.errors import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from metaforge.authoring.hooks import RunInfo
    from metaforge.config.resolved import Resolved
    from metaforge.registry.registry import Registry


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
    flags = options.RunFlags(
        learner, dataset, backbone, adapter, regularizer, steps, budget, seed, device, config, settings
    )
    registry, resolved = flags.resolved(folder=resume)
    from metaforge.engine import processes
    from metaforge.runs.training import run_training

    if nproc > 1 and not processes.under_torchrun():
        raise typer.Exit(_launched(resolved, resume or out, nproc, max_restarts))
    hooks = [*([] if no_progress else _progress(registry, resolved)), _Announcement()]
    run = run_training(
        resolved,
        folder=resume or out,
        command=shlex.join(["metaforge", *sys.argv[1:]]),
        dry_run=dry_run,
        hooks=hooks,
        resuming=resume is not None,
        accept_plugins=accept_plugins,
    )
    if processes.rank() == 0:
        answer = run.summary | ({"dry_run": True} if run.folder is None else {"folder": str(run.folder)})
        if evaluate_after and run.folder is not None:
            answer["evaluation"] = evaluate_folder(run.folder, registry, progress=not no_progress)
        (put_json if json else _put_run)(answer)


def _require_one_way(resume: Path | None, **others: Any) -> None:
    """Raise `ConfigError` where a run is to be resumed and begun at once."""
    from metaforge.errors import ConfigError

    clashing = [f"--{name.replace('_', '-')}" for name, value in others.items() if resume is not None and value]
    if clashing:
        raise ConfigError(
            f"--resume and {clashing[0]} cannot be given together.",
            remedy="a resumed run has its folder and its configuration; change single settings with --set",
        )


def _launched(resolved: Resolved, folder: Path | None, processes: int, restarts: int) -> int:
    """Run this very command in several processes, all with one folder, and return its exit code."""
    from metaforge.engine.launcher import launch
    from metaforge.runs.folder import default_folder

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


def _put_run(answer: dict[str, Any]) -> None:
    """Print what a training came to, and what can be done next."""
    evaluation, folder = answer.pop("evaluation", None), answer.get("folder")
    if answer.pop("dry_run", False):
        put("dry run: nothing was written")
    _put_facts(answer)
    if evaluation is not None:
        put_evaluation(evaluation)
    elif folder is not None:
        say(f"Next: metaforge evaluate {shlex.quote(folder)}")


def _put_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print nested facts as indented lines."""
    for name, value in facts.items():
        if isinstance(value, dict):
            put(f"{indent}{name}:")
            _put_facts(value, f"{indent}  ")
        else:
            put(f"{indent}{name}: {value:.6g}" if isinstance(value, float) else f"{indent}{name}: {value}")
