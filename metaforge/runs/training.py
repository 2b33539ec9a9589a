"""The outer loop: sample tasks, ask the engine for the meta-gradient, let the outer optimiser step, tell the hooks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from metaforge.authoring.hooks import Outcome, RunInfo
from metaforge.config.resolved import Resolved
from metaforge.engine import processes
from metaforge.engine.batch import MetaStep
from metaforge.engine.processes import World
from metaforge.errors import DivergedError, MetaForgeError, StorageError
from metaforge.registry.hook_contract import with_hooks
from metaforge.runs import divergence, resume
from metaforge.runs.folder import Bystander, RunFolder, Stopwatch, default_folder
from metaforge.runs.hook_calls import end_run, hook_manager, restore_states, states
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge.runs.run import Run
from metaforge.runs.state import Saver, State, better, from_bytes, to_bytes
from metaforge.runs.training_metrics import score_metrics, training_metrics
from metaforge.runs.worker import Worker
from metaforge.system import machine
from metaforge.system.signals import Interrupted, StopRequests, stop_requests

_FACTS = ("steps", "seconds", "tasks_per_second", "loss", "score")


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

    With `dry_run`, take one step and evaluate two tasks of each kind in a temporary folder; nothing is left. With
    `resuming`, go on with the run of `folder` after its last valid checkpoint; `accept_plugins` allows other versions
    of plugins than it began with. Raises a `MetaForgeError` whose exit code says what went wrong; the folder's status
    records it too.
    """
    device = machine.choose_device(resolved.run.device, processes.local_rank())
    # From before the data are read until the report is written: the run ends in order whenever it is asked to.
    with processes.world(device) as world, stop_requests(exit_on_second=world.size == 1) as asked:
        if dry_run:
            with tempfile.TemporaryDirectory() as temporary:
                return _Training(resolved, Path(temporary) / "run", command, hooks, world, dry=True).run(asked)
        names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
        path = world.path(folder or default_folder("-".join(names), processes.job_id()))
        # After a restart the processes take up what was saved, by the leading one alone where they share no disk.
        begun = world.is_rank_zero and processes.restart_count() > 0 and (path / "config.toml").is_file()
        resuming = resuming or world.maximum(int(begun)) == [1]
        training = _Training(resolved, path, command, hooks, world, resuming=resuming)
        if resuming:
            training.restore(accept_plugins=accept_plugins)
        return training.run(asked)


class _Training:
    """One training, from the first value to the last checkpoint; `state` is that after the last step that is done."""

    def __init__(
        self,
        resolved: Resolved,
        path: Path,
        command: str,
        hooks: Sequence[object],
        world: World,
        *,
        dry: bool = False,
        resuming: bool = False,
    ) -> None:
        self.resolved, self.config, self.dry = resolved, resolved.run.train, dry
        self.steps = min(1, self.config.steps) if dry else self.config.steps
        self.world, self.computation = world, Worker(resolved, world, dry=dry)
        parts = self.computation.parts
        # The leading process alone asks the hooks, and writes.
        self.plugins = {choice.name: choice.instantiate() for choice in resolved.hooks if world.is_rank_zero}
        carried = with_hooks([self.computation.learner, parts.dataset, *parts.regularizers])
        self.manager = hook_manager([*hooks, *carried, *self.plugins.values()] if world.is_rank_zero else [])
        self.hook = self.manager.hook
        environment = self.computation.environment()
        self.state = State()
        self.facts: dict[str, Any] = {}
        self.info = RunInfo(None if dry else path, resolved, command, environment)
        config = resolved.to_toml()
        if not world.is_rank_zero:
            self.folder: RunFolder = Bystander(path)
        elif resuming:
            self.folder = RunFolder.reopen(path)
        else:
            self.folder = RunFolder.create(path, config=config, command=command, environment=environment)
        known = {"config": resolved.to_dict(), "environment": environment}
        self.saver = Saver(path, resolved.run.checkpoint, known)

    def restore(self, *, accept_plugins: bool) -> None:
        """Take up the last valid state of the run, and record what is not as it was."""
        data = b""
        try:
            if self.world.is_rank_zero:
                fresh = self.computation.initial()
                state, facts = resume.restore_state(self.saver, self.info, fresh, accept_plugins=accept_plugins)
                restore_states(self.plugins, state.hooks)
                self.saver.restored(state)
                data = to_bytes(state, facts)
            self.state, facts = from_bytes(self.world.broadcast(data))
            self.facts |= resume.continue_run(self.folder, self.info, self.state, facts)
        except BaseException:
            self.folder.close()
            raise
        values = {name: value.to(self.computation.device) for name, value in self.state.values.items()}
        self.state = replace(self.state, values=values)
        told = {**self.info.environment, "resumed": facts}
        self.info = replace(self.info, start=self.state.step, environment=told)

    def run(self, asked: StopRequests) -> Run:
        """Train, and record how it ended whatever happens."""
        outcome: Outcome = "failed"
        error: BaseException | None = None
        try:
            self.folder.status("running")
            self.hook.metaforge_run_start(run=self.info)
            self._take_facts()
            outcome = self._loop(asked)
            if self.dry:
                self._rehearse()
        except BaseException as caught:
            error, outcome = caught, "stopped" if isinstance(caught, KeyboardInterrupt) else "failed"
        try:
            error = self._write_end(outcome, error)
        finally:
            try:
                end_run(self.manager, self.info, outcome, error)
            except MetaForgeError as late:
                # What the run came to stays as it is written, and an earlier error is the one to tell.
                if error is None:
                    self.folder.ended(outcome, late, self.facts)
                    error = late
                else:
                    error.add_note(str(late))
            finally:
                self.folder.close()
        if error is not None:
            raise error
        return self._made(outcome)

    def _write_end(self, outcome: Outcome, error: BaseException | None) -> BaseException | None:
        """Record and report the end, and return the error to tell: where both go wrong, the one that ended the run."""
        try:
            self.folder.ended(outcome, error, self.facts)
            # Where the disk is full, pictures would only make it fuller.
            if self.world.is_rank_zero and not self.dry and not isinstance(error, StorageError):
                self._made(outcome).report()
        except Exception as late:
            if error is None:
                raise
            error.add_note(f"The end could not be recorded: {late}")
        return error

    def _made(self, outcome: Outcome) -> Run:
        facts = {"outcome": outcome, **self.facts}
        computation = self.computation
        return Run(self.info.folder, self.resolved, computation.parts, self.state.values, computation.device, facts)

    def _take_facts(self) -> None:
        found = {name: value for facts in self.hook.metaforge_run_facts(run=self.info) for name, value in facts.items()}
        if found:
            self.facts["facts"] = {str(name): str(value) for name, value in found.items()}

    def _loop(self, asked: StopRequests) -> Outcome:
        if not self.state.values:
            self.state = replace(self.state, values=self.computation.initial())
            if bad := divergence.nonfinite(self.state.values):
                raise divergence.initial_error(self._who, bad)
        self.outer = OuterOptimizer(self.config, self.state.values, self.state.training)
        self.watch = Stopwatch(self.state.seconds)
        with asked.record_only():
            try:
                while not self._finished():
                    stop, best = self._step()
                    if best or self.saver.due(self.state):
                        self._save(best=best)
                    stopping, number = self.world.maximum(int(stop), asked.number or 0)
                    if stopping and not self._finished():
                        self._save()
                        return "stopped"
                    if number:
                        raise Interrupted(number)
            except BaseException as error:
                # What was learned so far is not lost.
                try:
                    self._save()
                except MetaForgeError as late:
                    error.add_note(f"The state could not be saved either: {late}")
                raise
            self._save()
        divergence.require_any_step(self._who, self.state.step, self.state.skipped)
        return "finished"

    @property
    def _who(self) -> str:
        return f"learner {type(self.computation.learner).__name__}"

    def _finished(self) -> bool:
        return self.state.is_over(self.steps, self.config.budget)

    def _step(self) -> tuple[bool, bool]:
        """Take one outer step and all that belongs to it; return whether to stop, and whether it is the best so far."""
        before, step = self.state, self.state.step + 1
        tasks = self.computation.sample(step)
        self.hook.metaforge_before_step(run=self.info, step=step, tasks=tasks)
        result = self.computation.gradients(before.values, tasks, step)
        try:
            state = self._updated(result, step)
        except DivergedError:
            if self.config.on_nonfinite == "stop" or len(before.skipped) >= self.config.skip_limit:
                raise
            # The optimiser may have written already: it goes back to where it was.
            self.outer = OuterOptimizer(self.config, before.values, before.training)
            state = replace(before, step=step, skipped=(*before.skipped, step))
            self.facts["skipped"] = list(state.skipped)
        # With a budget the clock decides what comes next, so all processes must read the same one.
        seconds = self.watch.seconds
        if self.config.budget is not None:
            seconds = self.world.maximum(int(seconds * 1e6))[0] / 1e6
        return self._after(replace(state, seconds=seconds))

    def _updated(self, result: MetaStep, step: int) -> State:
        """Return the state after a meta-gradient; raise `DivergedError` where it is not sound, or what it leads to."""
        before, episodes = self.state, self.computation.episodes(step)
        norm, limit = float(divergence.norm_of(result.grads)), divergence.limit(before.norms, self.config.divergence)
        if not bool(result.losses.isfinite().all()) or not norm <= limit or math.isinf(norm):
            raise divergence.step_error(self._who, result, norm, limit, step, episodes)
        self.outer.step(result.grads, result.state, norm=norm, done=self._share(before.step))
        values, training = self.outer.snapshot()
        if bad := [*divergence.nonfinite(values), *divergence.nonfinite(training)]:
            raise divergence.values_error(self._who, bad, step, episodes)
        own = {name: figures for name, figures in result.metrics.items() if name != "loss"}
        window = {
            name: [*before.window.get(name, []), *figures.detach().tolist()]
            for name, figures in {"loss": result.losses, **own}.items()
        }
        norms = (*before.norms, norm)[-divergence.REMEMBERED :]
        return replace(before, step=step, values=values, training=training, window=window, norms=norms)

    def _share(self, step: int) -> float:
        """Return how much of the run is done: with a time budget, the rate has fallen to its end when time is up."""
        done = step / self.steps
        if self.config.budget is not None:
            done = max(done, min(1.0, self.state.seconds / self.config.budget))
        return done

    def _after(self, state: State) -> tuple[bool, bool]:
        """Tell the hooks, write the record where one is due, and let the step count."""
        step, metrics, best = state.step, training_metrics(state, self.config, self.steps), False
        self.hook.metaforge_after_step(run=self.info, step=step, metrics=MappingProxyType(metrics))
        validated = self.config.validate_every > 0 and step % self.config.validate_every == 0
        if validated:
            found = self._validate(state, self.config.validate_tasks)
            metrics |= {f"val_{name}": value for name, value in found.items()}
            if best := better(found["score"], state.best, self.computation.parts.dataset.kind):
                state = replace(state, best=found["score"], best_step=step)
        stop = bool(self.hook.metaforge_should_stop(run=self.info, step=step, metrics=MappingProxyType(metrics)))
        due = validated or step % self.config.log_every == 0
        if due or stop or state.is_over(self.steps, self.config.budget):
            self.folder.record({"step": step, **metrics})
        # What was recorded before its time is recorded again if the run is lengthened.
        state = replace(state, window={}) if due else state
        self.state = replace(state, hooks=states(self.plugins))
        self.facts |= {"steps": step, "seconds": state.seconds} | {k: v for k, v in metrics.items() if k in _FACTS}
        return stop, best

    def _validate(self, state: State, tasks: int) -> dict[str, float]:
        """Return the figures of the first tasks of the validation split, and tell the hooks."""
        metrics = score_metrics(self.computation.validation_scores(state.values, tasks))
        self.hook.metaforge_after_eval(run=self.info, step=state.step, split="val", metrics=MappingProxyType(metrics))
        return metrics

    def _rehearse(self) -> None:
        """Try what follows a training: validation and evaluation, on two tasks each."""
        if self.config.validate_every:
            self._validate(self.state, 2)
        self._made("finished").evaluate(tasks=2)

    def _save(self, *, best: bool = False) -> None:
        self.folder.sync_metrics()
        if self.world.is_rank_zero and (path := self.saver.save(self.state, best=best)) is not None:
            self.hook.metaforge_checkpoint(run=self.info, step=self.state.step, path=path)
