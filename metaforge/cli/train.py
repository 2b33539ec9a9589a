"""`metaforge train`: trains a learner, or resumes a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from metaforge import hookimpl
from metaforge.cli import options
from metaforge.cli.evaluate import evaluate_folder, print_evaluation, warn_of_invalid_records
from metaforge.cli.output import handle_errors, print_answer, print_json, print_note
from metaforge.errors import printable
from metaforge.system.streams import stdout_to_stderr

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from metaforge.authoring.hooks import RunInfo
    from metaforge.config.resolved import Resolved
    from metaforge.registry.registry import Registry
    from metaforge.runs.run import Run


@handle_errors
def train(
    learner: options.Learner = None,
    dataset: options.Dataset = None,
    backbone: options.Backbone = None,
    adapter: options.Adapter = None,
    regularizer: options.RegularizerSet = None,
    optimizer: options.Optimizer = None,
    schedule: options.Schedule = None,
    hook: options.HookSet = None,
    preset: options.PresetSet = None,
    config: options.ConfigFile = None,
    settings: options.Settings = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    seed: options.Seed = None,
    device: options.Device = None,
    init_from: options.InitFrom = None,
    freeze: options.Freeze = None,
    out: options.Out = None,
    resume: options.Resume = None,
    accept_plugins: options.AcceptPlugins = False,
    dry_run: options.DryRun = False,
    evaluate_after: options.EvaluateAfter = False,
    nproc: options.Processes = 1,
    max_restarts: options.Restarts = 0,
    no_progress: options.NoProgress = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a learner, or resume a run; configuration, checkpoints, metrics and report are kept in a run folder."""
    _reject_with_resume(resume, out=out, config=config, dry_run=dry_run, init_from=init_from)
    plugins = (learner, dataset, backbone, adapter, regularizer, optimizer, schedule, hook, preset)
    flags = options.RunFlags(*plugins, steps, budget, seed, device, config, settings, init_from, freeze)
    registry, resolved = flags.resolve(folder=resume)
    from metaforge.engine import processes

    if nproc > 1 and not processes.under_torchrun():
        raise typer.Exit(_launch(resolved, resume or out, nproc, max_restarts))
    hooks = [*([] if no_progress else _progress_hooks(registry, resolved)), _RunMessages()]
    how = {"dry_run": dry_run, "resuming": resume is not None, "accept_plugins": accept_plugins}
    run = _trained(resolved, resume or out, hooks, **how)
    if processes.rank() == 0:
        answer = _answer(run, registry if evaluate_after else None, progress=not no_progress)
        (print_json if as_json else _print_run)(answer)


def _trained(resolved: Resolved, folder: Path | None, hooks: Sequence[object], **how: bool) -> Run:
    """Train and return the run, see `run_training`. What plugins print goes to stderr: stdout is for answers."""
    from metaforge.runs.training import run_training

    with stdout_to_stderr():
        command = shlex.join(["metaforge", *sys.argv[1:]])
        return run_training(resolved, folder=folder, command=command, hooks=hooks, **how)


def _answer(run: Run, registry: Registry | None, *, progress: bool) -> dict[str, Any]:
    """Return the summary of a run; with a registry, evaluate the run too. Invalid records are named on stderr.

    If that fails, the run's status gets the exit code of the command.
    """
    if run.folder is None:
        return run.summary | {"dry_run": True}
    answer = run.summary | {"folder": str(run.folder)}
    try:
        if registry is not None:
            answer["evaluation"] = evaluate_folder(run.folder, registry, progress=progress)
        warn_of_invalid_records(run.folder)
    except BaseException as error:
        from metaforge.runs.folder import record_failure

        record_failure(run.folder, error)
        raise
    return answer


def _reject_with_resume(resume: Path | None, **flags: Any) -> None:
    """Raise `ConfigError` if `--resume` is combined with a flag that only a new run can have."""
    from metaforge.errors import ConfigError

    conflicting = [f"--{name.replace('_', '-')}" for name, value in flags.items() if resume is not None and value]
    if conflicting:
        raise ConfigError(
            f"--resume and {conflicting[0]} cannot be given together.",
            remedy="a resumed run keeps its folder and its configuration; change single settings with --set",
        )


def _launch(resolved: Resolved, folder: Path | None, processes: int, restarts: int) -> int:
    """Run the same command in several processes that share one run folder, and return its exit code."""
    from metaforge.engine.launcher import launch
    from metaforge.runs.folder import default_folder

    arguments = sys.argv[1:]
    if folder is None:
        names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
        arguments = [*arguments, "--out", str(default_folder("-".join(names)))]
    return launch(arguments, processes, restarts)


def _progress_hooks(registry: Registry, resolved: Resolved) -> list[object]:
    """Return the default progress display, or nothing if the configuration already has it among its hooks."""
    entry = registry.default("hook")
    if entry is None:
        return []
    cls = registry.load("hook", entry.qualified)
    return [] if any(choice.cls is cls for choice in resolved.hooks) else [cls(cls.Config())]


class _RunMessages:
    """A hook that prints on stderr the run folder, how the run was resumed, and where its last checkpoint is."""

    @hookimpl
    def metaforge_run_start(self, run: RunInfo) -> None:
        """Print the run folder and how the run is computed."""
        facts = {key: run.environment[key] for key in ("device", "threads", "plan", "chunk") if key in run.environment}
        if run.folder is not None:
            print_note(f"run folder: {run.folder}  ({', '.join(f'{key} {value}' for key, value in facts.items())})")
        if "unused_statistics" in run.environment.get("weights", {}) and not run.start:
            self._print_unused(run.environment["weights"]["unused_statistics"])
        if "init_from" in run.environment and not run.start:
            self._print_taken(run.environment["init_from"])
        if "frozen" in run.environment:
            print_note(f"frozen: {_listed(run.environment['frozen'])}")
        if "resumed" in run.environment:
            self._print_resumed(run.start, run.environment["resumed"])

    @staticmethod
    def _print_unused(facts: Mapping[str, Any]) -> None:
        """Print which running statistics of a file of weights the run does not use, and which policy would."""
        print_note(
            f"not used of the weights: the running statistics of {_listed(facts['layers'])}; the norm policy is"
            f" {printable(facts['norm'])}, and only running uses them"
        )

    @staticmethod
    def _print_taken(facts: Mapping[str, Any]) -> None:
        """Print which initial values were taken over from another run, and why the others were not."""
        taken, source = facts["taken"], f"{printable(facts['run'])}, outer step {facts['step']}"
        total = len(taken) + sum(map(len, facts["not_taken"].values()))
        for damaged in facts["damaged"]:
            print_note(f"Warning: {printable(damaged)}")
        print_note(f"initial values from {source}: {len(taken)} of {total} values")
        print_note(f"  taken: {_listed(taken)}")
        for dtypes, names in facts["cast"].items():
            print_note(f"  cast from {dtypes}: {_listed(names)}")
        for reason, names in facts["not_taken"].items():
            print_note(f"  not taken, {reason}: {_listed(names)}")
        if facts["unused"]:
            print_note(f"  not used of that run: {_listed(facts['unused'])}")
        for difference in facts.get("backbone", ()):
            print_note(f"Warning: the network is not that of the run: {printable(difference)}")

    @staticmethod
    def _print_resumed(step: int, facts: Mapping[str, Any]) -> None:
        """Print the step from which a run resumes, the damaged checkpoints after it, and what has changed."""
        for damaged in facts["damaged"]:
            print_note(f"Warning: {printable(damaged)}")
        print_note(f"resumed after outer step {step}{'' if facts['exact'] else ', with these changes:'}")
        for line in facts["differences"]:
            print_note(f"  {printable(line)}")
        if "note" in facts:
            print_note(facts["note"])

    @hookimpl
    def metaforge_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        """If the run ended with an error, print where its last checkpoint is."""
        if error is not None and run.folder is not None and (run.folder / "ckpt" / "LATEST").is_file():
            print_note(f"The last checkpoint of this run is in {run.folder}")


def _listed(names: Sequence[str], most: int = 8) -> str:
    """Return names in one line: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return printable(", ".join(names[:most]) + more)


def _print_run(answer: dict[str, Any]) -> None:
    """Print the result of a training, and the command that evaluates it."""
    evaluation, folder = answer.pop("evaluation", None), answer.get("folder")
    if answer.pop("dry_run", False):
        print_answer("dry run: nothing was written")
    _print_facts(answer)
    if evaluation is not None:
        print_evaluation(evaluation)
    elif folder is not None:
        print_note(f"Next: metaforge evaluate {shlex.quote(folder)}")


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """Print nested facts as indented lines."""
    for name, value in facts.items():
        if isinstance(value, dict):
            print_answer(f"{indent}{name}:")
            _print_facts(value, f"{indent}  ")
        else:
            print_answer(f"{indent}{name}: {value:.6g}" if isinstance(value, float) else f"{indent}{name}: {value}")
