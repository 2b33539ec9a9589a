"""What a run computes and how: its learner on its device, in its precision, by the engine's plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params, Task
from metaforge.config.resolved import Resolved
from metaforge.engine import plans
from metaforge.engine.batch import Call, MetaStep, combining_regularizers, eager, meta_gradients, prepare
from metaforge.engine.compiler import Compiler
from metaforge.engine.precision import rounding
from metaforge.engine.processes import World
from metaforge.errors import ConfigError
from metaforge.results.episode_scores import EvaluationCase, episode_chunks, score_episodes
from metaforge.runs.assembly import Components
from metaforge.system import machine


class Worker:
    """The parts of a run, put to work on batches of tasks, alone or as one of several processes."""

    def __init__(self, resolved: Resolved, world: World, *, dry: bool = False) -> None:
        self.settings, self.world = resolved.run, world
        self.parts = Components(resolved)
        spec = self.parts.training_spec()
        machine.prepare(plans.choose_threads(resolved.run.engine.threads, spec, resolved.run.train.tasks))
        self.learner = self.parts.learner(spec)
        self.device = world.device
        self.dtype = self.parts.dtype
        asked = resolved.run.engine
        self.plan = plans.choose_plan(self.learner, asked.plan, self._fused_norms())
        shards = min(asked.shards, resolved.run.train.tasks) if asked.reduce == "exact" else None
        self.share = world.share(resolved.run.train.tasks, shards)
        # One step does not pay for its compilation.
        wish = "off" if dry and asked.compile == "auto" else asked.compile
        train = resolved.run.train
        self.compiled = plans.choose_compile(
            wish, spec, self.device, tasks=train.tasks, steps=train.steps, budget=train.budget
        )
        self._require_plain_sums()
        chunk = plans.choose_chunk(spec, self.device, asked.chunk, training=True, compiled=self.compiled)
        chunk = min(chunk, max(self.share.groups))
        even = self.compiled and asked.chunk is None
        self.chunk = plans.even_chunk(chunk, self.share.groups) if even else chunk
        self._call: Call = Compiler() if self.compiled else eager

    def environment(self) -> dict[str, Any]:
        """Return what a reader of the results must know: machine, versions, plugins, and how it is computed."""
        chosen = {"device": str(self.device), "plan": self.plan, "chunk": self.chunk, "processes": self.world.size}
        chosen |= {"compiled": self.compiled, "dtype": self.settings.engine.dtype}
        return {**machine.facts(), "plugins": self.parts.provenance(), **chosen}

    def initial(self) -> Params:
        """Return the learner's values before any training."""
        values = self.learner.init(make_key(self.settings.seed, "init"))
        return {name: value.to(self.device, self.dtype) for name, value in values.items()}

    def sample(self, step: int) -> Task:
        """Return this process's training episodes of an outer step `[episodes, ...]`, as the data set gives them."""
        shape, seed, own = self.parts.training_shape, self.settings.seed, self._own(step)
        return self.parts.dataset.sample("train", shape, own[0], len(own), seed=seed)

    def gradients(self, values: Params, tasks: Task, step: int) -> MetaStep:
        """Return the meta-gradient of an outer step's whole batch, given this process's part of it."""
        keys = [make_key(self.settings.seed, "train", episode) for episode in self._own(step)]
        taken = partial(
            meta_gradients,
            self.learner,
            values,
            prepare(tasks, self.device, self.dtype),
            torch.stack(keys).to(self.device),
            chunk=self.chunk,
            regularizers=self.parts.regularizers,
        )
        with rounding(self.device, self.settings.engine.dtype, tf32=self.settings.engine.tf32):
            try:
                return taken(plan=self.plan, share=self.share, call=self._call)
            except RuntimeError as error:
                self._require_possible(taken, error)
                raise

    def _require_possible(self, taken: Callable[..., MetaStep], error: RuntimeError) -> None:
        """Raise `ConfigError` where the same step can be taken in a plainer way: the learner is not at fault."""
        plainer = [("engine.compile", "off", "A compiled step", self.plan)] if self.compiled else []
        plainer += [("engine.plan", "loop", f"Plan {self.plan!r}", "loop")] if self.plan != "loop" else []
        for setting, value, what, plan in plainer:
            try:
                taken(plan=plan)
            except RuntimeError:
                continue
            first = str(error).strip().partition("\n")[0][:200]
            raise ConfigError(
                f"{what} cannot run {type(self.learner).__name__}: {first}",
                where=setting,
                remedy=f"set {setting} to {value}",
            ) from error

    def _fused_norms(self) -> list[str]:
        """Return torch's own norms that a learner adapts through, seen on its first training task."""
        if not self.learner.tags.adapts:
            return []
        batch = self.parts.dataset.sample("train", self.parts.training_shape, 0, 1, seed=self.settings.seed)
        task = one_task(prepare(batch, self.device, self.dtype), 0)
        return plans.fused_norms(self.learner, self.initial(), task, make_key(self.settings.seed, "train", 0))

    def _require_plain_sums(self) -> None:
        """Raise `ConfigError` where a compiled step is asked for, but a regularizer weighs each task by all losses."""
        combining = combining_regularizers(self.parts.regularizers, self.share.total)
        if combining and self.settings.engine.compile == "on":
            raise ConfigError(
                f"A step with {type(combining[0]).__name__} cannot be compiled: it weighs tasks by the losses of all.",
                where="engine.compile",
                remedy="set engine.compile to off",
            )
        self.compiled = self.compiled and not combining

    def episodes(self, step: int) -> range:
        """Return the training episodes of an outer step."""
        return range((step - 1) * self.share.total, step * self.share.total)

    def _own(self, step: int) -> range:
        return self.episodes(step)[self.share.first : self.share.first + sum(self.share.groups)]

    def validation_scores(self, values: Params, tasks: int) -> list[float]:
        """Return the scores of the first tasks of the validation split, NaN where a prediction is not finite.

        Each process computes a part of the tasks; all processes return the scores of all tasks.
        """
        spec = self.parts.dataset.spec("val", self.parts.task_shape)
        case = EvaluationCase(spec, self.parts.learner(spec))
        chunk = plans.choose_chunk(spec, self.device, self.settings.engine.chunk, training=False)
        # The same chunks for any number of processes: the last bits of a score depend on which tasks are in its chunk.
        chunks = episode_chunks(tasks, chunk)
        ends = [len(chunks) * rank // self.world.size for rank in range(self.world.size + 1)]
        shares = [chunks[ends[rank] : ends[rank + 1]] for rank in range(self.world.size)]
        scores: list[float] = []
        for episodes in shares[self.world.rank]:
            result = score_episodes(
                case,
                values,
                self.parts.dataset,
                episodes,
                split="val",
                seed=self.settings.evaluate.seed,
                device=self.device,
                dtype=self.dtype,
                plan=self.plan,
            )
            scores += result.scores[0].tolist()
        return self.world.gather(scores, [sum(map(len, share)) for share in shares])
