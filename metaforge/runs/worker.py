"""The computation of a run in one process: outer steps and validation, as the engine decided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Params, Task
from metaforge.config.resolved import Resolved
from metaforge.engine import plans
from metaforge.engine.batch import MetaStep, meta_gradients, prepare_tasks, score_tasks
from metaforge.engine.chunks import chunk_gradients
from metaforge.engine.compiler import Compiler
from metaforge.engine.contract import checked_values
from metaforge.engine.plans import Plan
from metaforge.engine.precision import rounding
from metaforge.engine.processes import World
from metaforge.errors import ConfigError
from metaforge.results.episode_scores import EvaluationCase, episode_chunks, score_episodes
from metaforge.runs.assembly import Components
from metaforge.system import machine


class Worker:
    """Computes the outer steps and the validation of a run, in one process or as one rank of several.

    Args:
        resolved: The configuration of the run.
        world: The process group.
        dry: Whether it is a dry run, which takes one outer step.
    """

    def __init__(self, resolved: Resolved, world: World, *, dry: bool = False) -> None:
        self.resolved, self.settings, self.world, self.device = resolved, resolved.run, world, world.device
        self.parts = Components(resolved)
        self.spec = spec = self.parts.training_spec()
        self.learner = self.parts.learner(spec)
        self.dtype = self.parts.dtype
        self._require_predictions(spec.outputs)
        engine, train = resolved.run.engine, resolved.run.train
        shards = min(engine.shards, train.tasks) if engine.reduce == "exact" else None
        self.local = world.local_batch(train.tasks, shards)
        steps = min(1, train.steps) if dry else train.steps
        fused_norms = self._fused_norms()
        with resolved.running_errors("set-up", always=False):
            self.decision = plans.decide(
                self.learner,
                plans.Workload(spec, self.device, train.tasks, self.local.groups, steps, train.budget),
                plans.Requested(engine.plan, engine.chunk, engine.compile, engine.threads),
                fused_norms=fused_norms,
                regularizers=self.parts.regularizers,
            )
        machine.prepare(self.decision.threads)
        compiled = self.decision.compiled
        self._compiled = Compiler(chunk_gradients(self.learner, self.plan)) if compiled else None
        self._is_first_step = True

    @property
    def plan(self) -> Plan:
        """The plan that the engine decided on."""
        return self.decision.plan

    def environment(self) -> dict[str, Any]:
        """Return the facts of `env.json`: machine, versions, plugins, and how the run is computed."""
        decision = self.decision
        facts: dict[str, Any] = {"device": str(self.device), "plan": decision.plan, "chunk": decision.chunk}
        facts |= {"processes": self.world.size, "compiled": decision.compiled, "dtype": self.settings.engine.dtype}
        if decision.not_compiled_because:
            facts["not_compiled_because"] = decision.not_compiled_because
        return {**machine.facts(), "plugins": self.parts.provenance(), **facts}

    def initial(self, weights: Params | None = None) -> Params:
        """Return the learner's initial values; `weights` replace the initial weights of the backbone."""
        learner = self.learner if weights is None else self.parts.learner(self.spec, weights)
        with self.resolved.running_errors("init"):
            values = checked_values(learner.init(make_key(self.settings.seed, "init")))
            return {name: value.to(self.device, self.dtype) for name, value in values.items()}

    def episodes(self, step: int) -> range:
        """Return the indices of the training episodes of an outer step."""
        return range((step - 1) * self.local.total, step * self.local.total)

    def _local_episodes(self, step: int) -> range:
        """Return the indices of the training episodes of an outer step that this rank computes."""
        return self.episodes(step)[self.local.first : self.local.first + sum(self.local.groups)]

    def sample(self, step: int) -> Task:
        """Return this rank's training episodes of an outer step `[episodes, ...]`, as the data set returns them."""
        shape, seed, episodes = self.parts.training_shape, self.settings.seed, self._local_episodes(step)
        with self.resolved.running_errors("sample", f"at outer step {step}", owner=self.resolved.dataset):
            return self.parts.dataset.sample("train", shape, episodes[0], len(episodes), seed=seed)

    def gradients(self, values: Params, tasks: Task, step: int) -> MetaStep:
        """Return the meta-gradient of the whole batch of an outer step.

        Args:
            values: The learner's values.
            tasks: This rank's part of the batch, as `sample` returns it.
            step: The number of the outer step, from 1.

        Raises:
            ConfigError: The step fails by this plan or compiled, but succeeds by plan `loop` or eagerly.
            PluginError: The learner, or another plugin that it calls, raises an exception or breaks its contract.
        """
        keys = torch.stack([make_key(self.settings.seed, "train", episode) for episode in self._local_episodes(step)])
        keys = keys.to(self.device)
        with (
            self.resolved.running_errors("loss", f"at outer step {step}"),
            rounding(self.device, self.settings.engine.dtype, tf32=self.settings.engine.tf32),
        ):
            batch = prepare_tasks(tasks, self.device, self.dtype)
            try:
                result = meta_gradients(
                    self.learner,
                    values,
                    batch,
                    keys,
                    plan=self.plan,
                    chunk=self.decision.chunk,
                    regularizers=self.parts.regularizers,
                    local=self.local,
                    compiled=self._compiled,
                    frozen=self.settings.train.freeze,
                )
            except RuntimeError as error:
                self._refuse_setting_at_fault(values, batch, keys, error)
                raise
            if self._is_first_step and self.plan == "vmap":
                # Under `vmap` a loss that depends on no parameter has a gradient of zeros; plan `loop` refuses it.
                first, frozen = tree_map(lambda x: x[:1], batch), self.settings.train.freeze
                meta_gradients(self.learner, values, first, keys[:1], frozen=frozen)
        self._is_first_step = False
        return result

    def _refuse_setting_at_fault(self, values: Params, batch: Task, keys: Tensor, error: RuntimeError) -> None:
        """Raise `ConfigError` if the step succeeds eagerly or by plan `loop`: then the setting is at fault."""
        simpler: list[tuple[str, str, str, Plan]] = []
        if self.decision.compiled:
            simpler.append(("engine.compile", "off", "A compiled step", self.plan))
        if self.plan != "loop":
            simpler.append(("engine.plan", "loop", f"Plan {self.plan!r}", "loop"))
        for setting, value, what, plan in simpler:
            try:
                meta_gradients(
                    self.learner,
                    values,
                    batch,
                    keys,
                    plan=plan,
                    chunk=self.decision.chunk,
                    regularizers=self.parts.regularizers,
                    frozen=self.settings.train.freeze,
                )
            except RuntimeError:
                continue
            first_line = str(error).strip().partition("\n")[0][:200]
            raise ConfigError(
                f"{what} cannot run {type(self.learner).__name__}: {first_line}",
                where=setting,
                remedy=f"set {setting} to {value}",
            ) from error

    def _first_task(self) -> Task:
        """Return the first training task as a batch of one, prepared for the learner."""
        with self.resolved.running_errors("sample", "before the first step", owner=self.resolved.dataset):
            batch = self.parts.dataset.sample("train", self.parts.training_shape, 0, 1, seed=self.settings.seed)
            return prepare_tasks(batch, self.device, self.dtype)

    def _require_predictions(self, outputs: int) -> None:
        """Raise `PluginError` unless the learner predicts `[n, outputs]` for the first training task.

        A training sees only losses, so predictions of a wrong shape would not be noticed before the evaluation.
        """
        task, values = self._first_task(), self.initial()
        with self.resolved.running_errors("prediction", "before the first step"):
            score_tasks(self.learner, values, task, outputs=outputs)

    def _fused_norms(self) -> list[str]:
        """Return the names of PyTorch's fused norm functions that the loss of the first training task calls.

        The list is empty for a learner that does not adapt in steps.
        """
        if not self.learner.tags.adapts:
            return []
        task, values = one_task(self._first_task(), 0), self.initial()
        with self.resolved.running_errors("loss", "before the first step"):
            return plans.fused_norms(self.learner, values, task, make_key(self.settings.seed, "train", 0))

    def validation_scores(self, values: Params, tasks: int, step: int) -> list[float]:
        """Return the scores of the first tasks of the validation split, NaN where a prediction is not finite.

        Each process computes a part of the tasks; all processes return the scores of all tasks.

        Args:
            values: The learner's values.
            tasks: The number of tasks.
            step: The number of the outer step, for error messages.
        """
        when = f"at outer step {step}"
        with self.resolved.running_errors("spec", when, owner=self.resolved.dataset):
            spec = self.parts.dataset.spec("val", self.parts.task_shape)
        case = EvaluationCase(spec, self.parts.learner(spec))
        chunk = plans.choose_chunk(spec, self.device, self.settings.engine.chunk, training=False)
        # The same chunks for any number of processes: the last bits of a score depend on which tasks are in its chunk.
        chunks = [*episode_chunks(tasks, chunk)]
        ends = [len(chunks) * rank // self.world.size for rank in range(self.world.size + 1)]
        shares = [chunks[ends[rank] : ends[rank + 1]] for rank in range(self.world.size)]
        scores: list[float] = []
        for episodes in shares[self.world.rank]:
            with self.resolved.running_errors("validation", when):
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
