"""The outer loop: sample tasks, ask the engine for the meta-gradient, let the outer optimiser step, tell the hooks."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import Tensor

from metaforge import checkpoint, engine, runtime
from metaforge.components import Components
from metaforge.config import Resolved
from metaforge.errors import DivergedError, MetaForgeError
from metaforge.evaluation import figure
from metaforge.functional import split_state
from metaforge.hooks import Outcome, RunInfo, end_run, hook_manager
from metaforge.keys import make_key
from metaforge.protocols import Params, Task
from metaforge.registry import Registry
from metaforge.run import Run
from metaforge.runs import RunFolder, Stopwatch, default_folder

_FACTS = ("steps", "seconds", "tasks_per_second", "loss", "score")


def run_training(
    resolved: Resolved,
    registry: Registry,
    *,
    folder: Path | None = None,
    command: str = "",
    dry_run: bool = False,
    hooks: Sequence[object] = (),
) -> Run:
    """Train what a configuration describes and return the run.

    With `dry_run`, take one step and evaluate two tasks of each kind in a temporary folder; nothing is left. Raises a
    `MetaForgeError` whose exit code says what went wrong; the folder's status records it too.
    """
    if dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            return _Training(resolved, Path(temporary) / "run", command, hooks, dry=True).run()
    names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
    return _Training(resolved, folder or default_folder("-".join(names)), command, hooks).run()


class _Training:
    """One training, from the first value to the last checkpoint.

    `values` are those after outer step `step`, always finite; the window has the figures since the last record.
    """

    def __init__(
        self, resolved: Resolved, path: Path, command: str, hooks: Sequence[object], *, dry: bool = False
    ) -> None:
        self.resolved, self.config, self.dry = resolved, resolved.run.train, dry
        self.steps = min(1, self.config.steps) if dry else self.config.steps
        runtime.prepare(resolved.run.engine.threads)
        self.parts = Components(resolved)
        spec = self.parts.training_spec()
        self.learner = self.parts.learner(spec)
        self.device = runtime.choose_device(resolved.run.device)
        self.dtype = self.parts.dtype
        asked = resolved.run.engine
        self.plan = engine.choose_plan(self.learner, asked.plan)
        self.chunk = min(engine.choose_chunk(spec, self.device, asked.chunk, training=True), self.config.tasks)
        self.manager = hook_manager([*hooks, *(choice.cls(choice.config) for choice in resolved.hooks)])
        environment = {**runtime.facts(), "plugins": self.parts.provenance(), "device": str(self.device)}
        environment |= {"plan": self.plan, "chunk": self.chunk}
        self.folder = RunFolder.create(path, config=resolved.to_toml(), command=command, environment=environment)
        self.info = RunInfo(None if dry else path, resolved, command, environment)
        self.values: Params = {}
        self.step = 0
        self.window: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.facts: dict[str, Any] = {}

    @property
    def hook(self) -> pluggy.HookRelay:
        """The run's hooks, ready to be called."""
        return self.manager.hook

    def run(self) -> Run:
        """Train, and record how it ended whatever happens."""
        outcome: Outcome = "failed"
        error: BaseException | None = None
        try:
            self.folder.status("running")
            self.hook.metaforge_run_start(run=self.info)
            self._take_facts()
            outcome = self._loop()
            if self.dry:
                self._rehearse()
        except BaseException as caught:
            error, outcome = caught, "stopped" if isinstance(caught, KeyboardInterrupt) else "failed"
        try:
            self._write_end(outcome, error)
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
        if error is not None:
            raise error
        return self._made(outcome)

    def _write_end(self, outcome: Outcome, error: BaseException | None) -> None:
        self.folder.ended(outcome, error, self.facts)
        if not self.dry:
            # A report that cannot be drawn must not hide why the run ended.
            with contextlib.suppress(*([] if error is None else [Exception])):
                self._made(outcome).report()

    def _made(self, outcome: Outcome) -> Run:
        facts = {"outcome": outcome, **self.facts}
        return Run(self.info.folder, self.resolved, self.parts, self.values, self.device, facts)

    def _take_facts(self) -> None:
        found = {name: value for facts in self.hook.metaforge_run_facts(run=self.info) for name, value in facts.items()}
        if found:
            self.facts["facts"] = {str(name): str(value) for name, value in found.items()}

    def _loop(self) -> Outcome:
        initial = self.learner.init(make_key(self.resolved.run.seed, "init"))
        self._keep(0, {n: v.to(self.device, self.dtype) for n, v in initial.items()})
        params, state = split_state(self.values)
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        optimizer = self._optimizer(list(leaves.values()))
        watch = Stopwatch()
        try:
            while self.step < self.steps:
                self._schedule(optimizer)
                state = self._update(leaves, state, optimizer)
                self.seconds = watch.seconds
                if self._after():
                    return "finished" if self._done() else "stopped"
        finally:
            # Also when interrupted: what was learned so far is not lost.
            self._save()
        return "finished"

    def _update(self, leaves: Params, state: Params, optimizer: torch.optim.Optimizer) -> Params:
        """Take one outer step, and return the state after it."""
        step, count = self.step + 1, self.config.tasks
        first = self.step * count
        tasks = self.parts.dataset.sample("train", self.parts.training_shape, first, count, seed=self.resolved.run.seed)
        self.hook.metaforge_before_step(run=self.info, step=step, tasks=tasks)
        result = self._gradients(engine.prepare(tasks, self.device, self.dtype), first)
        norm = _norm(result.grads.values())
        if not bool(result.losses.isfinite().all()) or not bool(norm.isfinite()):
            raise self._diverged(first, result)
        scale = min(1.0, self.config.clip / (float(norm) + 1e-12)) if self.config.clip else 1.0
        for name, leaf in leaves.items():
            leaf.grad = result.grads[name] * scale if scale != 1.0 else result.grads[name]
        optimizer.step()
        state = {name: (value + result.state.get(name, 0)).detach() for name, value in state.items()}
        self._keep(step, leaves | state)
        own = {name: values for name, values in result.metrics.items() if name != "loss"}
        for name, values in {"loss": result.losses, **own}.items():
            self.window.setdefault(name, []).extend(values.detach().tolist())
        return state

    def _gradients(self, tasks: Task, first: int) -> engine.MetaStep:
        keys = [make_key(self.resolved.run.seed, "train", first + i) for i in range(self.config.tasks)]
        return engine.meta_gradients(
            self.learner,
            self.values,
            tasks,
            torch.stack(keys).to(self.device),
            plan=self.plan,
            chunk=self.chunk,
            regularizers=self.parts.regularizers,
        )

    def _keep(self, step: int, values: Params) -> None:
        """Take the values after a step; where they are not finite, keep those before it and raise `DivergedError`."""
        if not bool(_norm(values.values()).isfinite()):
            bad = [name for name, value in values.items() if not bool(value.isfinite().all())]
            if bad:
                raise self._lost(step, bad)
        # A copy: the optimiser writes in place.
        self.values, self.step = {name: value.detach().clone() for name, value in values.items()}, step

    def _after(self) -> bool:
        """Tell the hooks, write the record where one is due, and return whether the run is to end."""
        step, metrics = self.step, self._metrics()
        self.facts |= {"steps": step, "seconds": self.seconds} | {k: v for k, v in metrics.items() if k in _FACTS}
        self.hook.metaforge_after_step(run=self.info, step=step, metrics=metrics)
        validated = self.config.validate_every > 0 and step % self.config.validate_every == 0
        if validated:
            metrics |= self._validate(self.config.validate_tasks)
        stop = self._done() or bool(self.hook.metaforge_should_stop(run=self.info, step=step, metrics=metrics))
        if stop or validated or step % self.config.log_every == 0:
            self.folder.record({"step": step, **metrics})
            self.window.clear()
        return stop

    def _metrics(self) -> dict[str, float]:
        step, budget = self.step, self.config.budget
        total = self.steps if budget is None else min(self.steps, budget * step / self.seconds)
        own = {name: math.fsum(values) / len(values) for name, values in self.window.items()}
        return {
            **own,
            **(_figures(self.window["score"]) if "score" in own else {}),
            "elapsed": self.seconds,
            "eta": max(0.0, (total - step) * self.seconds / step),
            "tasks_per_second": step * self.config.tasks / self.seconds,
        }

    def _validate(self, tasks: int) -> dict[str, float]:
        """Return the figures of the first tasks of the validation split, and tell the hooks."""
        settings = self.resolved.run
        spec = self.parts.dataset.spec("val", self.parts.task_shape)
        tester = self.parts.learner(spec)
        chunk = engine.choose_chunk(spec, self.device, settings.engine.chunk, training=False)
        scores: list[float] = []
        for first in range(0, tasks, chunk):
            count = min(chunk, tasks - first)
            batch = self.parts.dataset.sample("val", spec.shape, first, count, seed=settings.evaluate.seed)
            batch = engine.prepare(batch, self.device, self.dtype)
            scores += engine.evaluate(tester, self.values, batch, plan=self.plan).scores.tolist()
        metrics = _figures(scores)
        self.hook.metaforge_after_eval(run=self.info, step=self.step, split="val", metrics=metrics)
        return {f"val_{name}": value for name, value in metrics.items()}

    def _rehearse(self) -> None:
        """Try what follows a training: validation and evaluation, on two tasks each."""
        if self.config.validate_every:
            self._validate(2)
        self._made("finished").evaluate(tasks=2)

    def _optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        if self.config.optimizer == "adam":
            return torch.optim.AdamW(leaves, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return torch.optim.SGD(leaves, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> None:
        # With a time budget the rate has fallen to its end when the time is up, however many steps that took.
        done = self.step / self.steps
        if self.config.budget is not None:
            done = max(done, min(1.0, self.seconds / self.config.budget))
        factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr * factor[self.config.schedule]

    def _done(self) -> bool:
        return self.step >= self.steps or (self.config.budget is not None and self.seconds >= self.config.budget)

    def _save(self) -> None:
        facts = {"learner": self.parts.provenance().get("learner"), "config": self.resolved.to_dict()}
        path = checkpoint.save(self.folder.path / "ckpt", self.step, self.values, facts)
        self.hook.metaforge_checkpoint(run=self.info, step=self.step, path=path)

    def _lost(self, step: int, bad: Sequence[str]) -> DivergedError:
        where = f"learner {type(self.learner).__name__}; values that are not finite: {', '.join(bad[:5])}"
        if step == 0:
            remedy = "check the learner's options, and the initial weights of a backbone of your own"
            return DivergedError(f"The initial value {bad[0]!r} is not finite.", where=where, remedy=remedy)
        first = self.step * self.config.tasks
        return DivergedError(
            f"The value {bad[0]!r} is no longer finite after outer step {step}.",
            where=f"{where}; training episodes {first} to {first + self.config.tasks - 1}",
            remedy=f"lower train.lr; the values after step {self.step} are saved",
        )

    def _diverged(self, first: int, result: engine.MetaStep) -> DivergedError:
        bad = [first + i for i, loss in enumerate(result.losses.tolist()) if not math.isfinite(loss)]
        worst = next((n for n, g in result.grads.items() if not bool(g.isfinite().all())), "none")
        return DivergedError(
            f"The loss or the meta-gradient is no longer finite at outer step {self.step + 1}.",
            where=f"learner {type(self.learner).__name__}; training episodes with a bad loss: {bad or 'none'};"
            f" first bad gradient: {worst}",
            remedy=f"lower the inner or the outer learning rate, or set train.clip;"
            f" the values after step {self.step} are saved",
        )


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the norm of all tensors together, 0 of none: finite only if every number is."""
    norms = [tensor.norm() for tensor in tensors if tensor.is_floating_point()]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _figures(scores: Sequence[float]) -> dict[str, float]:
    """Return the mean of scores and its interval; the mean is NaN where a score is, and one score has no interval."""
    found = figure(scores)
    if found["tasks"] < len(scores):
        return {"score": math.nan}
    return {"score": found["mean"]} | ({} if found["ci"] is None else {"score_ci": found["ci"]})
