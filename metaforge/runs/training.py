"""The outer loop: sample tasks, compute the meta-gradient, step the outer optimiser, call the hooks, save."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from metaforge.authoring.hooks import Outcome
from metaforge.authoring.progress import is_progress, with_progress
from metaforge.config.resolved import Resolved
from metaforge.engine import processes
from metaforge.engine.batch import MetaStep
from metaforge.errors import DivergedError, MetaForgeError
from metaforge.runs import divergence, resume
from metaforge.runs.ending import Ending
from metaforge.runs.folder import Stopwatch, default_folder
from metaforge.runs.hook_calls import restore_states, run_facts, states
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge.runs.rounds import round_metrics
from metaforge.runs.run import Run
from metaforge.runs.setup import Setup, set_up
from metaforge.runs.state import State, better, from_bytes, to_bytes
from metaforge.runs.training_metrics import extended_window, score_metrics, training_metrics
from metaforge.runs.untrained import UntrainedParameters
from metaforge.runs.validation import validation_scores
from metaforge.system import machine
from metaforge.system.signals import Interrupted, StopRequests, stop_requests

_STATUS_METRICS = ("tasks_per_second", "loss", "score")


def run_training(
    resolved: Resolved,
    *,
    folder: Path | None = None,
    command: str = "",
    dry_run: bool = False,
    hooks: Sequence[object] = (),
    resuming: bool = False,
    accept_plugins: bool = False,
) -> Run:
    """Train what a configuration describes and return the run.

    Args:
        resolved: The configuration.
        folder: The run folder; a new one below `runs/` if None.
        command: The command line, recorded in the folder.
        dry_run: Take one step, and validate and evaluate on two tasks each, in a temporary folder that is then removed.
        hooks: Objects with hooks, called in addition to those that the configuration names.
        resuming: Whether to resume the run in `folder` from its last valid checkpoint.
        accept_plugins: Whether to resume even if plugins have other versions than those that the run was trained with.

    Returns:
        The trained run.

    Raises:
        MetaForgeError: The run cannot be started, fails or diverges. The exit code of the error says which, and the
            `status.json` of the folder records it.
        KeyboardInterrupt: After SIGINT, SIGTERM or SIGHUP, once the step in progress is saved.
    """
    device = machine.choose_device(resolved.run.device, processes.local_rank())
    # Signals are handled from before the data are read until the report is written, so that a signal at any time ends
    # the run gracefully.
    with processes.world(device) as world, stop_requests(exit_on_second=world.size == 1) as signals:
        if dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                setup = set_up(resolved, Path(temporary) / "run", command, hooks, world, dry=True)
                return _Training(setup, setup.start).run(signals)
        names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
        path = world.path(folder or default_folder("-".join(names), processes.job_id()))
        # After a restart rank 0 decides whether to resume, because other ranks may not be able to read its disk.
        restarted = world.is_rank_zero and processes.restart_count() > 0 and (path / "config.toml").is_file()
        resuming = resuming or world.maximum(int(restarted)) == [1]
        setup = set_up(resolved, path, command, hooks, world, resuming=resuming)
        training = _restored(setup, accept_plugins=accept_plugins) if resuming else _Training(setup, setup.start)
        return training.run(signals)


def _restored(setup: Setup, *, accept_plugins: bool) -> _Training:
    """Return the training that continues from the last valid checkpoint of the run's folder.

    Rank 0 reads the checkpoint, checks it and broadcasts the state: other ranks may not be able to read its disk.
    """
    data, folder, info = b"", setup.folder, setup.info
    try:
        if setup.world.is_rank_zero:
            state, facts = resume.restore_state(
                setup.saver, setup.resolved, info.environment, setup.worker.initial(), accept_plugins=accept_plugins
            )
            if state.values:
                # Raises if the state of the optimiser does not belong to this learner and these options.
                setup.worker.outer_optimizer(state.values, state.training, state.scalars)
            restore_states(setup.plugins, state.hooks)
            setup.saver.restored(state)
            data = to_bytes(state, facts)
        state, facts = from_bytes(setup.world.broadcast(data))
        status = resume.continue_run(folder, setup.resolved, info.command, state, facts)
        if folder is not None and setup.data is not None:
            folder.write_data(setup.data.model_dump(mode="json"))
        values = {name: value.to(setup.worker.device) for name, value in state.values.items()}
    except BaseException:
        if folder is not None:
            folder.close()
        raise
    environment = {**info.environment, "resumed": facts}
    setup = replace(setup, info=replace(info, start=state.step, environment=environment))
    return _Training(setup, replace(state, values=values), status)


class _StepResult(NamedTuple):
    """Whether a hook stops the run after a step, and whether the step's validation score is the best so far."""

    stop: bool
    best: bool


class _Training:
    """The outer loop of one run.

    `state` is the state after the last complete step, `facts` is what `status.json` records besides the outcome.
    """

    # Built in `run`, not in `__init__`: if it fails, the run must end like any other that fails.
    optimizer: OuterOptimizer

    def __init__(self, setup: Setup, state: State, facts: Mapping[str, Any] | None = None) -> None:
        self.setup, self.world, self.worker, self.info = setup, setup.world, setup.worker, setup.info
        self.folder, self.hook, self.config = setup.folder, setup.hooks.hook, setup.resolved.run.train
        self.steps = min(1, self.config.steps) if setup.dry else self.config.steps
        self.state, self.facts = state, dict(facts or {})
        self.learner = f"learner {type(self.worker.learner).__name__}"
        self.untrained = UntrainedParameters(self.learner, prints=self.world.is_rank_zero)

    def run(self, signals: StopRequests) -> Run:
        """Train, record how the run ended, and return it."""
        reports = self.world.is_rank_zero and not self.setup.dry
        report = (lambda outcome: self._result(outcome).report()) if reports else None
        with Ending(self.folder, self.setup.hooks, self.info, self.facts, report) as ending:
            if self.folder is not None:
                self.folder.status("running")
            self.hook.metaforge_run_start(run=self.info)
            self.facts |= run_facts(self.setup.hooks, self.info)
            self._start()
            ending.outcome = self._loop(signals)
            if self.setup.dry:
                self._rehearse()
        return self._result(ending.outcome)

    def _start(self) -> None:
        """Initialise the values, unless they were restored, and build the outer optimiser."""
        if not self.state.values:
            self.state = replace(self.state, values=self.worker.initial())
        divergence.require_finite_start(self.learner, self.state.values)
        self.state = self._with_progress(self.state)
        self.optimizer = self.worker.outer_optimizer(self.state.values, self.state.training, self.state.scalars)

    def _loop(self, signals: StopRequests) -> Outcome:
        """Take outer steps until the run is over, a hook stops it, or a signal arrives; then save the state."""
        watch = Stopwatch(self.state.seconds)
        with signals.record_only():
            try:
                while not self._is_over():
                    stop, best = self._step(watch)
                    if best or self.setup.saver.due(self.state):
                        self._save(best=best)
                    stopping, number = self.world.maximum(int(stop), signals.number or 0)
                    if stopping and not self._is_over():
                        self._save()
                        return "stopped"
                    if number:
                        raise Interrupted(number)
            except BaseException as error:
                # Whatever ended the loop, the state after the last complete step is saved.
                try:
                    self._save()
                except MetaForgeError as failure:
                    error.add_note(f"The state could not be saved either: {failure}")
                raise
            self._save()
        divergence.require_any_step(self.learner, self.state.step, self.state.skipped)
        return "finished"

    def _step(self, watch: Stopwatch) -> _StepResult:
        """Take one outer step with its hooks, validation and record; the state is replaced only at the end of it."""
        step = self.state.step + 1
        self.worker.begin_step(step, self._share_done(self.state))
        online = round_metrics(self.worker, self.state.values, step)
        batches = self.worker.sample(step)
        self.hook.metaforge_before_step(run=self.info, step=step, batches=[part.tasks for b in batches for part in b])
        state = self._updated(self.worker.gradients(self.state.values, batches, step), step)
        state = self._with_progress(replace(state, seconds=self._seconds(watch)))
        metrics = training_metrics(state, self.config, self.steps) | online
        self.hook.metaforge_after_step(run=self.info, step=step, metrics=MappingProxyType(metrics))
        if validated := self.config.validate_every > 0 and step % self.config.validate_every == 0:
            scores = self._validate(state, self.config.validate_tasks)
            metrics |= {f"val_{name}": value for name, value in scores.items()}
            if better(scores["score"], state.best, self.info.kind):
                state = replace(state, best=scores["score"], best_step=step)
        stop = bool(self.hook.metaforge_should_stop(run=self.info, step=step, metrics=MappingProxyType(metrics)))
        due = validated or bool(online) or not step % self.config.log_every
        state = self._recorded(state, metrics, due=due, last=stop)
        self.state = replace(state, hooks=states(self.setup.plugins))
        self.facts |= {"steps": step, "seconds": state.seconds}
        self.facts |= {name: metrics[name] for name in _STATUS_METRICS if name in metrics}
        return _StepResult(stop, best=state.best_step == step)

    def _updated(self, result: MetaStep, step: int) -> State:
        """Return the state after an update by a meta-gradient, or after a step that is skipped because it diverged."""
        before = self.state
        try:
            return self._stepped(result, step)
        except DivergedError:
            if self.config.on_nonfinite == "stop" or len(before.skipped) >= self.config.skip_limit:
                raise
            # The optimiser may already have updated the parameters: rebuild it from the state before the step.
            self.optimizer = self.worker.outer_optimizer(before.values, before.training, before.scalars)
            skipped = (*before.skipped, step)
            self.facts["skipped"] = list(skipped)
            return replace(before, step=step, skipped=skipped)

    def _stepped(self, result: MetaStep, step: int) -> State:
        """Return the state after an update by a meta-gradient.

        Raises `DivergedError` if the losses, the meta-gradient or the updated values are not finite, or if the
        meta-gradient explodes.
        """
        before, episodes = self.state, self.worker.episodes(step)
        self.untrained.see(result.grads)
        norm, limit = float(divergence.norm_of(result.grads)), divergence.limit(before.norms, self.config.divergence)
        if not bool(result.losses.isfinite().all()) or not norm <= limit or math.isinf(norm):
            raise divergence.step_error(self.learner, result, norm, limit, step, episodes)
        factor = self.worker.rate_factor(before.step, self._share_done(before))
        with self.worker.optimizer_errors("step", step):
            self.optimizer.step(result.grads, result.state, norm=norm, factor=factor)
            kept = self.optimizer.snapshot()
        if bad := [*divergence.nonfinite(kept.values), *divergence.nonfinite(kept.training)]:
            raise divergence.values_error(self.learner, bad, step, episodes)
        by_task = {"loss": result.losses} | {name: x for name, x in result.metrics.items() if name != "loss"}
        with self.setup.resolved.running_errors("metrics", f"at outer step {step}"):
            window = extended_window(before.window, {name: x.detach().tolist() for name, x in by_task.items()})
        norms = (*before.norms, norm)[-divergence.REMEMBERED :]
        state = replace(before, values=kept.values, training=kept.training, scalars=kept.scalars)
        return replace(state, step=step, window=window, norms=norms)

    def _recorded(self, state: State, metrics: Mapping[str, float], *, due: bool, last: bool) -> State:
        """Append a step's metrics to `metrics.jsonl` if they are due or the run ends; return the state after that."""
        if self.folder is not None and (due or last or state.is_over(self.steps, self.config.budget)):
            self.folder.record({"step": state.step, **metrics})
        # A record that is written early, because the run ends, does not clear the window: if the run is lengthened, the
        # next regular record replaces it.
        return replace(state, window={}) if due else state

    def _seconds(self, watch: Stopwatch) -> float:
        """Return the duration of the run so far; with a time budget, which decides when to end, equal on all ranks."""
        if self.config.budget is None:
            return watch.seconds
        return self.world.maximum(int(watch.seconds * 1e6))[0] / 1e6

    def _share_done(self, state: State) -> float:
        """Return the fraction of the run that is done, by steps or by time, for schedules and for the learner."""
        by_steps = state.step / max(self.steps, 1)
        return by_steps if self.config.budget is None else max(by_steps, min(1.0, state.seconds / self.config.budget))

    def _with_progress(self, state: State) -> State:
        """Return the state with the entries of its values that tell plugins where the training stands."""
        if not any(map(is_progress, state.values)):
            return state
        return replace(state, values=with_progress(state.values, state.step, self._share_done(state)))

    def _is_over(self) -> bool:
        return self.state.is_over(self.steps, self.config.budget)

    def _validate(self, state: State, tasks: int) -> dict[str, float]:
        """Return the mean score on the first tasks of the validation split, and call the hooks with it."""
        metrics = score_metrics(validation_scores(self.worker, state.values, tasks, state.step))
        self.hook.metaforge_after_eval(run=self.info, step=state.step, split="val", metrics=MappingProxyType(metrics))
        return metrics

    def _rehearse(self) -> None:
        """Try the validation, and the evaluation after the training, on two tasks each."""
        if self.config.validate_every:
            self._validate(self.state, 2)
        self._result("finished").evaluate(tasks=2)

    def _save(self, *, best: bool = False) -> None:
        """Save the state unless it is saved already."""
        if self.folder is None:
            return
        self.folder.sync_metrics()
        if (path := self.setup.saver.save(self.state, best=best)) is not None:
            self.hook.metaforge_checkpoint(run=self.info, step=self.state.step, path=path)

    def _result(self, outcome: Outcome) -> Run:
        worker, summary = self.worker, {"outcome": outcome, **self.facts}
        return Run(self.info.folder, self.setup.resolved, worker.parts, self.state.values, worker.device, summary)
