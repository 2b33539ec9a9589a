"""The outer loop: sample tasks, ask the engine for the meta-gradient, let the outer optimiser step, tell the hooks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import Tensor

from metaforge import checkpoint, engine, runtime
from metaforge.components import Components
from metaforge.config import Resolved
from metaforge.errors import DivergedError, MetaForgeError
from metaforge.functional import split_state
from metaforge.hooks import Outcome, RunInfo, hook_manager
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
    """Train what a configuration describes and return the run; with `dry_run`, take one step in a temporary folder.

    Raises a `MetaForgeError` whose exit code says what went wrong; the folder's status records it too.
    """
    if dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            return _Training(resolved, Path(temporary) / "run", command, hooks, steps=1).run()
    names = [choice.entry.name for choice in (resolved.dataset, resolved.learner) if choice is not None]
    path = folder or default_folder("-".join(names))
    return _Training(resolved, path, command, hooks, steps=resolved.run.train.steps).run()


class _Training:
    """One training, from the first value to the last checkpoint."""

    def __init__(self, resolved: Resolved, path: Path, command: str, hooks: Sequence[object], steps: int) -> None:
        self.resolved, self.config, self.steps = resolved, resolved.run.train, steps
        runtime.prepare(resolved.run.engine.threads)
        self.parts = Components(resolved)
        self.learner = self.parts.learner(self.parts.training_spec())
        self.device = runtime.choose_device(resolved.run.device)
        self.dtype = self.parts.dtype
        self.manager = hook_manager([*hooks, *(choice.cls(choice.config) for choice in resolved.hooks)])
        environment = {**runtime.facts(), "plugins": self.parts.provenance(), "device": str(self.device)}
        self.folder = RunFolder.create(path, config=resolved.to_toml(), command=command, environment=environment)
        self.info = RunInfo(path, resolved, command)
        self.window: list[tuple[Tensor, Tensor]] = []
        self.seconds = 0.0
        self.facts: dict[str, Any] = {}

    def run(self) -> Run:
        """Train, and record how it ended whatever happens."""
        outcome: Outcome = "failed"
        error: BaseException | None = None
        try:
            self.folder.status("running")
            self.hook.metaforge_run_start(run=self.info)
            self._record_facts()
            values, outcome = self._loop()
        except BaseException as caught:
            error = caught
            code = (
                caught.exit_code
                if isinstance(caught, MetaForgeError)
                else 130
                if isinstance(caught, KeyboardInterrupt)
                else 1
            )
            outcome = "stopped" if code == 130 else "failed"
            self.folder.status(outcome, exit_code=code, error=str(caught) or type(caught).__name__, **self.facts)
            raise
        finally:
            self.hook.metaforge_run_end(run=self.info, outcome=outcome, error=error)
        self.folder.status(outcome, exit_code=0, **self.facts)
        facts = {"outcome": outcome, **self.facts}
        run = Run(self.folder.path, self.resolved, self.parts, values, self.device, facts)
        run.report()
        return run

    @property
    def hook(self) -> pluggy.HookRelay:
        """The run's hooks, ready to be called."""
        return self.manager.hook

    def _record_facts(self) -> None:
        for facts in self.hook.metaforge_run_facts(run=self.info):
            self.facts |= {f"{key}": value for key, value in (facts or {}).items()}

    def _loop(self) -> tuple[Params, Outcome]:
        seed = self.resolved.run.seed
        initial = self.learner.init(make_key(seed, "init"))
        values = {n: v.to(self.device, self.dtype) for n, v in initial.items()}
        params, state = split_state(values)
        leaves = {name: value.requires_grad_() for name, value in params.items()}
        optimizer = self._optimizer(list(leaves.values()))
        watch = Stopwatch()
        outcome: Outcome = "finished"
        step = 0
        try:
            while step < self.steps:
                self._schedule(optimizer, step)
                state = self._step(step, leaves, state, optimizer)
                step += 1
                self.seconds = watch.seconds
                if self._after(step, leaves, state):
                    outcome = "stopped" if step < self.steps and not self._out_of_time() else "finished"
                    break
        finally:
            # Also when interrupted: what was learned so far is not lost.
            values = {n: v.detach() for n, v in leaves.items()} | state
            if all(bool(v.isfinite().all()) for v in values.values()):
                self._save(step, values)
        return values, outcome

    def _step(self, step: int, leaves: Params, state: Params, optimizer: torch.optim.Optimizer) -> Params:
        count = self.config.tasks
        first = step * count
        tasks = self.parts.dataset.sample("train", self.parts.training_shape, first, count, seed=self.resolved.run.seed)
        self.hook.metaforge_before_step(run=self.info, step=step + 1, tasks=tasks)
        result = self._gradients(engine.prepare(tasks, self.device, self.dtype), first, leaves, state)
        norm = torch.stack([g.norm() for g in result.grads.values()]).norm()
        if not bool(result.losses.isfinite().all()) or not bool(norm.isfinite()):
            raise self._diverged(step, first, result)
        scale = min(1.0, self.config.clip / (float(norm) + 1e-12)) if self.config.clip else 1.0
        for name, leaf in leaves.items():
            leaf.grad = result.grads[name] * scale if scale != 1.0 else result.grads[name]
        optimizer.step()
        self.window.append((result.losses.detach(), result.metrics.get("score", result.losses).detach()))
        self.own = {n: float(v.mean()) for n, v in result.metrics.items() if n != "score"}
        return {name: (value + result.state.get(name, 0)).detach() for name, value in state.items()}

    def _gradients(self, tasks: Task, first: int, leaves: Params, state: Params) -> engine.MetaStep:
        seed, settings = self.resolved.run.seed, self.resolved.run.engine
        keys = torch.stack([make_key(seed, "train", first + i) for i in range(self.config.tasks)]).to(self.device)
        return engine.meta_gradients(
            self.learner,
            {name: leaf.detach() for name, leaf in leaves.items()} | state,
            tasks,
            keys,
            plan=engine.choose_plan(self.learner, settings.plan),
            chunk=settings.chunk,
            regularizers=self.parts.regularizers,
        )

    def _after(self, step: int, leaves: Params, state: Params) -> bool:
        """Tell the hooks, write the record, and return whether the run is to end."""
        metrics = self._metrics(step)
        self.facts |= {"steps": step, "seconds": self.seconds} | {k: v for k, v in metrics.items() if k in _FACTS}
        self.hook.metaforge_after_step(run=self.info, step=step, metrics=metrics)
        every = self.config.validate_every
        if every and step % every == 0:
            metrics |= self._validate(step, {n: v.detach() for n, v in leaves.items()} | state)
        done = step >= self.steps or self._out_of_time()
        if done or step % self.config.log_every == 0:
            self.folder.record({"step": step, **metrics})
            self.window.clear()
        return done or bool(self.hook.metaforge_should_stop(run=self.info, step=step, metrics=metrics))

    def _metrics(self, step: int) -> dict[str, float]:
        losses, scores = (torch.cat(column) for column in zip(*self.window, strict=True))
        spread = float(scores.std()) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        total = self.steps if self.config.budget is None else min(self.steps, self.config.budget * step / self.seconds)
        return {
            "loss": float(losses.mean()),
            "score": float(scores.mean()),
            "score_ci": 1.96 * spread,
            "elapsed": self.seconds,
            "eta": max(0.0, (total - step) * self.seconds / step),
            "tasks_per_second": step * self.config.tasks / self.seconds,
            **self.own,
        }

    def _validate(self, step: int, values: Params) -> dict[str, float]:
        shape, count = self.parts.task_shape, self.config.validate_tasks
        tester = self.parts.learner(self.parts.dataset.spec("val", shape))
        seed = self.resolved.run.evaluate.seed
        tasks = engine.prepare(self.parts.dataset.sample("val", shape, 0, count, seed=seed), self.device, self.dtype)
        scores = engine.evaluate(tester, values, tasks).scores
        metrics = {"score": float(scores.mean()), "score_ci": 1.96 * float(scores.std()) / math.sqrt(count)}
        self.hook.metaforge_after_eval(run=self.info, step=step, split="val", metrics=metrics)
        return {f"val_{name}": value for name, value in metrics.items()}

    def _optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        if self.config.optimizer == "adam":
            return torch.optim.AdamW(leaves, lr=self.config.lr, weight_decay=self.config.weight_decay)
        return torch.optim.SGD(leaves, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def _schedule(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        # With a time budget the rate has fallen to its end when the time is up, however many steps that took.
        done = step / self.steps
        if self.config.budget is not None:
            done = max(done, min(1.0, self.seconds / self.config.budget))
        factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        for group in optimizer.param_groups:
            group["lr"] = self.config.lr * factor[self.config.schedule]

    def _out_of_time(self) -> bool:
        return self.config.budget is not None and self.seconds >= self.config.budget

    def _save(self, step: int, values: Params) -> None:
        facts = {"learner": self.parts.provenance().get("learner"), "config": self.resolved.to_dict()}
        path = checkpoint.save(self.folder.path / "ckpt", step, values, facts)
        self.hook.metaforge_checkpoint(run=self.info, step=step, path=path)

    def _diverged(self, step: int, first: int, result: engine.MetaStep) -> DivergedError:
        bad = [first + i for i, loss in enumerate(result.losses.tolist()) if not math.isfinite(loss)]
        worst = next((n for n, g in result.grads.items() if not bool(g.isfinite().all())), "none")
        return DivergedError(
            f"The loss or the meta-gradient is no longer finite at outer step {step + 1}.",
            where=f"learner {type(self.learner).__name__}; training episodes with a bad loss: {bad or 'none'};"
            f" first bad gradient: {worst}",
            remedy="lower the inner or the outer learning rate, or set train.clip; the weights before it are saved",
        )
