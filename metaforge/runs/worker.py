"""The computation of a run in one process: outer steps and validation, as the engine decided."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metaforge.authoring.functional import one_task
from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Key, Learner, Optimizer, Params, Schedule, Task, TaskSpec
from metaforge.config.resolved import Resolved
from metaforge.data.checks import expected_tasks
from metaforge.engine import plans
from metaforge.engine.accumulation import mean_step
from metaforge.engine.batch import MetaStep, meta_gradients, prepare_tasks, score_tasks
from metaforge.engine.chunks import ChunkGradients, chunk_gradients
from metaforge.engine.compiler import Compiler
from metaforge.engine.contract import checked_values
from metaforge.engine.plans import Plan
from metaforge.engine.precision import rounding
from metaforge.engine.processes import World
from metaforge.errors import ConfigError, ContractError
from metaforge.registry.contract import contract_errors
from metaforge.results.episode_scores import EvaluationCase, episode_chunks, score_episodes
from metaforge.runs.assembly import Components
from metaforge.runs.learning_rate import rate_factor
from metaforge.runs.optimizer_state import Scalar
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge.system import machine


class _Phase(NamedTuple):
    """The learner whose loss the outer steps differentiate, and how they are computed for it."""

    learner: Learner
    decision: plans.Decision
    compiled: ChunkGradients | None


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
        self._require_predictions(spec)
        self.optimizer, self.schedule = self._optimizer()
        # Built once for its errors: later ones would leave a run folder behind.
        self.outer_optimizer(self.initial())
        engine, train = resolved.run.engine, resolved.run.train
        shards = min(engine.shards, train.tasks) if engine.reduce == "exact" else None
        self.local = world.local_batch(train.tasks, shards)
        steps = min(1, train.steps) if dry else train.steps
        batches = steps * train.accumulate
        self._workload = plans.Workload(spec, self.device, train.tasks, self.local.groups, batches, train.budget)
        self._phase = self._planned(self.learner)
        self.decision = self._phase.decision
        machine.prepare(self.decision.threads)

    @property
    def plan(self) -> Plan:
        """The plan that the engine decided on for the present phase of the training."""
        return self._phase.decision.plan

    def _planned(self, learner: Learner) -> _Phase:
        """Return a phase of the training by a learner: decide how its outer steps are computed."""
        engine, fused_norms = self.settings.engine, self._fused_norms(learner)
        with self.resolved.running_errors("set-up", always=False):
            decision = plans.decide(
                learner,
                self._workload,
                plans.Requested(engine.plan, engine.chunk, engine.compile, engine.threads),
                fused_norms=fused_norms,
                regularizers=self.parts.regularizers,
            )
        self._is_first_step = True
        compiled = Compiler(chunk_gradients(learner, decision.plan)) if decision.compiled else None
        return _Phase(learner, decision, compiled)

    def begin_step(self, step: int, share: float) -> None:
        """Let the learner choose the learner of an outer step (`Learner.during`); for another one, decide anew.

        Args:
            step: The number of the outer step, from 1.
            share: The fraction of the training that is done.

        Raises:
            PluginError: What the learner returns is no learner with values of the same names and shapes.
        """
        with self.resolved.running_errors("during", f"at outer step {step}"):
            learner = self.learner.during(share)
            if learner is self._phase.learner:
                return
            if learner is not self.learner:
                self._require_same_values(learner)
        self._phase = self._planned(learner)

    def _require_same_values(self, learner: Learner) -> None:
        """Raise `ContractError` unless this is a learner with values of the names and shapes of the run's learner."""
        if errors := contract_errors("learner", type(learner)):
            raise ContractError(
                f"it returns an object of type {type(learner).__name__}, which is no learner: {errors[0]}"
            )
        shapes = [
            {name: tuple(value.shape) for name, value in checked_values(one.init(self._initial_key())).items()}
            for one in (self.learner, learner)
        ]
        if different := sorted(dict(shapes[0].items() ^ shapes[1].items())):
            name = type(learner).__name__
            raise ContractError(f"the values of {name} differ in names or shapes: {', '.join(different[:5])}")

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
            values = checked_values(learner.init(self._initial_key()))
            return {name: value.to(self.device, self.dtype) for name, value in values.items()}

    def _initial_key(self) -> Key:
        return make_key(self.settings.seed, "init")

    def _optimizer(self) -> tuple[Optimizer, Schedule]:
        """Return the outer optimiser and its schedule; raise `ConfigError` if there are none."""
        choices = (self.resolved.optimizer, self.resolved.schedule)
        optimizer, schedule = (None if choice is None else choice.instantiate() for choice in choices)
        if optimizer is None or schedule is None:
            raise ConfigError(
                "A training needs an optimizer and a schedule, and none is the default.",
                remedy="choose them with --optimizer and --schedule",
            )
        return optimizer, schedule

    def outer_optimizer(
        self, values: Params, training: Params | None = None, scalars: Mapping[str, Scalar] | None = None
    ) -> OuterOptimizer:
        """Return the outer optimiser for the learner's values, new or as it was when a state was saved."""
        with self.resolved.running_errors("build", owner=self.resolved.optimizer):
            return OuterOptimizer(self.settings.train, self.optimizer, values, training, scalars)

    def optimizer_errors(self, doing: str, step: int) -> AbstractContextManager[None]:
        """Return a context in which an exception of the outer optimiser becomes a `PluginError` that names it."""
        return self.resolved.running_errors(doing, f"at outer step {step}", owner=self.resolved.optimizer)

    def rate_factor(self, step: int, share: float) -> float:
        """Return what the learning rate is multiplied by after `step` outer steps and the share `share` of the run."""
        with self.resolved.running_errors("factor", f"at outer step {step + 1}", owner=self.resolved.schedule):
            return rate_factor(self.schedule, self.settings.train.warmup, step, share)

    def episodes(self, step: int) -> range:
        """Return the indices of the training episodes of an outer step."""
        size = self.local.total * self.settings.train.accumulate
        return range((step - 1) * size, step * size)

    def _local_episodes(self, step: int) -> list[range]:
        """Return the indices of the training episodes of an outer step that this rank computes, for each batch."""
        episodes, total = self.episodes(step), self.local.total
        own = slice(self.local.first, self.local.first + sum(self.local.groups))
        return [episodes[first : first + total][own] for first in range(0, len(episodes), total)]

    def sample(self, step: int) -> Task:
        """Return this rank's training episodes of an outer step `[episodes, ...]`, as the data set returns them."""
        shape, seed = self.parts.training_shape, self.settings.seed
        with self.resolved.running_errors("sample", f"at outer step {step}", owner=self.resolved.dataset):
            batches = []
            for episodes in self._local_episodes(step):
                tasks = self.parts.dataset.sample("train", shape, episodes[0], len(episodes), seed=seed)
                batches.append(expected_tasks(self.parts.dataset, tasks, self.spec, len(episodes)))
        return batches[0] if len(batches) == 1 else tree_map(lambda *x: torch.cat(x), *batches)

    def gradients(self, values: Params, tasks: Task, step: int) -> MetaStep:
        """Return the meta-gradient of an outer step: the mean of those of its batches.

        Args:
            values: The learner's values.
            tasks: This rank's part of the batches, as `sample` returns it.
            step: The number of the outer step, from 1.

        Raises:
            ConfigError: The step fails by this plan or compiled, but succeeds by plan `loop` or eagerly.
            PluginError: The learner, or another plugin that it calls, raises an exception or breaks its contract.
        """
        batches, first = [], 0
        for episodes in self._local_episodes(step):
            part = slice(first, first + len(episodes))
            batches.append((tree_map(lambda x, part=part: x[part], tasks), episodes))
            first += len(episodes)
        return mean_step(self._batch_gradients(values, batch, episodes, step) for batch, episodes in batches)

    def _batch_gradients(self, values: Params, tasks: Task, episodes: range, step: int) -> MetaStep:
        """Return the meta-gradient of one batch, of which `tasks` and `episodes` are this rank's part."""
        keys = torch.stack([make_key(self.settings.seed, "train", episode) for episode in episodes])
        keys = keys.to(self.device)
        with (
            self.resolved.running_errors("loss", f"at outer step {step}"),
            rounding(self.device, self.settings.engine.dtype, tf32=self.settings.engine.tf32),
        ):
            batch = prepare_tasks(tasks, self.device, self.dtype)
            try:
                result = meta_gradients(
                    self._phase.learner,
                    values,
                    batch,
                    keys,
                    plan=self.plan,
                    chunk=self._phase.decision.chunk,
                    regularizers=self.parts.regularizers,
                    local=self.local,
                    compiled=self._phase.compiled,
                    frozen=self.settings.train.freeze,
                )
            except RuntimeError as error:
                self._refuse_setting_at_fault(values, batch, keys, error)
                raise
            if self._is_first_step and self.plan == "vmap":
                # Under `vmap` a loss that depends on no parameter has a gradient of zeros; plan `loop` refuses it.
                first, frozen = tree_map(lambda x: x[:1], batch), self.settings.train.freeze
                meta_gradients(self._phase.learner, values, first, keys[:1], frozen=frozen)
        self._is_first_step = False
        return result

    def _refuse_setting_at_fault(self, values: Params, batch: Task, keys: Tensor, error: RuntimeError) -> None:
        """Raise `ConfigError` if the step succeeds eagerly or by plan `loop`: then the setting is at fault."""
        simpler: list[tuple[str, str, str, Plan]] = []
        learner, decision, _ = self._phase
        if decision.compiled:
            simpler.append(("engine.compile", "off", "A compiled step", self.plan))
        if self.plan != "loop":
            simpler.append(("engine.plan", "loop", f"Plan {self.plan!r}", "loop"))
        for setting, value, what, plan in simpler:
            try:
                meta_gradients(
                    learner,
                    values,
                    batch,
                    keys,
                    plan=plan,
                    chunk=decision.chunk,
                    regularizers=self.parts.regularizers,
                    frozen=self.settings.train.freeze,
                )
            except RuntimeError:
                continue
            first_line = str(error).strip().partition("\n")[0][:200]
            raise ConfigError(
                f"{what} cannot run {type(learner).__name__}: {first_line}",
                where=setting,
                remedy=f"set {setting} to {value}",
            ) from error

    def _first_task(self) -> Task:
        """Return the first training task as a batch of one, prepared for the learner."""
        with self.resolved.running_errors("sample", "before the first step", owner=self.resolved.dataset):
            batch = self.parts.dataset.sample("train", self.parts.training_shape, 0, 1, seed=self.settings.seed)
            return prepare_tasks(batch, self.device, self.dtype)

    def _require_predictions(self, spec: TaskSpec) -> None:
        """Raise `PluginError` unless the learner predicts `[n, outputs]` for the first training task.

        A training sees only losses, so predictions of a wrong shape would not be noticed before the evaluation.
        """
        task, values = self._first_task(), self.initial()
        keys = make_key(self.settings.seed, "train", 0).to(self.device).unsqueeze(0)
        with self.resolved.running_errors("prediction", "before the first step"):
            score_tasks(self.learner, values, task, keys, kind=spec.kind, outputs=spec.outputs)

    def _fused_norms(self, learner: Learner) -> list[str]:
        """Return the names of PyTorch's fused norm functions that a learner's loss of the first training task calls.

        The list is empty for a learner that does not adapt in steps.
        """
        if not learner.tags.adapts:
            return []
        task, values = one_task(self._first_task(), 0), self.initial()
        with self.resolved.running_errors("loss", "before the first step"):
            return plans.fused_norms(learner, values, task, make_key(self.settings.seed, "train", 0))

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
