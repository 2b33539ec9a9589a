"""The computation of a run in one process: outer steps and validation, as the engine decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.utils._pytree import tree_map

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Key, Learner, Optimizer, Params, Schedule, TaskSpec
from metaforge.config.resolved import Resolved
from metaforge.data.batches import TaskBatch, episode_batches
from metaforge.data.checks import expected_spec
from metaforge.data.stream import seen_tasks
from metaforge.engine import plans
from metaforge.engine.accumulation import mean_step
from metaforge.engine.batch import MetaStep, meta_gradients, mixed_gradients, prepare_tasks, score_tasks
from metaforge.engine.contract import checked_values
from metaforge.engine.plans import Plan
from metaforge.engine.precision import rounding
from metaforge.engine.probe import Probe, probe_loss
from metaforge.engine.processes import World
from metaforge.errors import ConfigError, ContractError, printable
from metaforge.registry.contract import contract_errors
from metaforge.runs.assembly import Components
from metaforge.runs.computations import Computation, Computations, refuse_setting_at_fault
from metaforge.runs.learning_rate import rate_factor
from metaforge.runs.optimizer_state import Scalar
from metaforge.runs.outer_optimizer import OuterOptimizer
from metaforge.runs.rounds import require_fixed_shape
from metaforge.runs.verification import verify_network
from metaforge.system import machine
from metaforge.system.streams import note_stream


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
        self.spec = self.parts.training_spec()
        self.learner, self._specs = self.parts.learner(self.spec), {self.spec.shape: self.spec}
        self.dtype = self.parts.dtype
        require_fixed_shape(self.settings)
        self._require_predictions()
        self.optimizer, self.schedule = self._optimizer()
        # Built once for its errors: later ones would leave a run folder behind.
        self.outer_optimizer(self.initial())
        engine, train = resolved.run.engine, resolved.run.train
        shards = min(engine.shards, train.tasks) if engine.reduce == "exact" else None
        varied = self.parts.training_bounds is not None
        self.local = world.local_batch(train.tasks, shards, varied=varied)
        self._computations = self._new_computations(min(1, train.steps) if dry else train.steps)
        self._phase = self._planned(self.learner)
        self.decision = self._phase.decision
        machine.prepare(self.decision.threads)
        with resolved.running_errors("comparison with plain PyTorch"):
            self._verified = verify_network(self.parts, self.learner, self.spec, self.plan)

    @property
    def plan(self) -> Plan:
        """The plan that the engine decided on for the present phase of the training."""
        return self._phase.decision.plan

    def _new_computations(self, steps: int) -> Computations:
        """Return how the tasks of each shape are computed in a training of so many outer steps."""
        train, bounds, shapes = self.settings.train, self.parts.training_bounds, self.parts.training_shapes
        examples = None if bounds is None else bounds.support + self.spec.shape.ways * bounds.queries
        batches = steps * train.accumulate // (shapes.number if bounds is None else 1)
        workload = plans.Workload(
            self.spec, self.device, train.tasks, self.local.groups, batches, train.budget, examples
        )
        return Computations(self.parts, self.spec, self.learner, workload)

    def _planned(self, learner: Learner, share: float = 0.0) -> Computation:
        """Return a phase of the training by a learner: decide how its outer steps are computed."""
        probe = self._probe(learner, share)
        phase = self._computations.begin_phase(learner, share, probe)
        if probe.not_batched_because and self.world.is_rank_zero:
            note = f"Note: tasks are computed one after another (engine.plan is loop): {probe.not_batched_because}."
            print(printable(note), file=note_stream())
        self._is_first_step = True
        return phase

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
        self._phase = self._planned(learner, share)

    def learner_for(self, spec: TaskSpec) -> Learner:
        """Return the run's learner for training tasks of another spec, which is built once."""
        return self._computations.learner_for(spec)

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
        return {**machine.facts(), "plugins": self.parts.provenance(), **facts, **self._verified}

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

    def sample(self, step: int) -> list[list[TaskBatch]]:
        """Return this rank's training episodes of an outer step as the data set returns them.

        There is a list for each batch of `train.tasks` tasks; in it are the tasks of each shape.
        """
        with self.resolved.running_errors("sample", f"at outer step {step}", owner=self.resolved.dataset):
            spec = self._spec_at(step)
            return [self._sampled(spec, episodes) for episodes in self._local_episodes(step)]

    def _sampled(self, spec: TaskSpec, episodes: range) -> list[TaskBatch]:
        bounds, seed, train = self.parts.training_bounds, self.settings.seed, self.settings.train
        per_round = train.round * train.accumulate * train.tasks
        numbers = seen_tasks(episodes, per_round, seed=seed) if train.order == "stream" else None
        return episode_batches(self.parts.dataset, "train", spec, bounds, episodes, seed=seed, numbers=numbers)

    def _spec_at(self, step: int) -> TaskSpec:
        """Return the spec of the training tasks of an outer step; of varied tasks, that of the most classes."""
        if self.parts.training_bounds is not None:
            return self.spec
        shape = self.parts.training_shapes.at(step, seed=self.settings.seed)
        if shape not in self._specs:
            self._specs[shape] = expected_spec(self.parts.dataset, self.parts.dataset.spec("train", shape), shape)
        return self._specs[shape]

    def gradients(self, values: Params, batches: Sequence[Sequence[TaskBatch]], step: int) -> MetaStep:
        """Return the meta-gradient of an outer step: the mean of those of its batches.

        Args:
            values: The learner's values.
            batches: This rank's part of the batches, as `sample` returns it.
            step: The number of the outer step, from 1.

        Raises:
            ConfigError: The step fails by this plan or compiled, but succeeds by plan `loop` or eagerly.
            PluginError: The learner, or another plugin that it calls, raises an exception or breaks its contract.
        """
        with self.resolved.running_errors("loss", f"at outer step {step}"):
            return mean_step(self._batch_gradients(values, batch) for batch in batches)

    def _batch_gradients(self, values: Params, batch: Sequence[TaskBatch]) -> MetaStep:
        """Return the meta-gradient of one batch, of which this is this rank's part, by shape."""
        first = min(part.episodes[0] for part in batch)
        with rounding(self.device, self.settings.engine.dtype, tf32=self.settings.engine.tf32):
            shaped = [self._computations.shaped(part, first, self.device, self.dtype) for part in batch]
            regularizers, frozen = self.parts.regularizers, self.settings.train.freeze
            try:
                result = mixed_gradients(
                    shaped, values, plan=self.plan, regularizers=regularizers, local=self.local, frozen=frozen
                )
            except RuntimeError as error:
                refuse_setting_at_fault(shaped, values, self.plan, regularizers, error, frozen=frozen)
                raise
            if self._is_first_step and self.plan == "vmap":
                # Under `vmap` a loss that depends on no parameter has a gradient of zeros; plan `loop` refuses it.
                learner, tasks, keys = shaped[0][:3]
                meta_gradients(learner, values, tree_map(lambda x: x[:1], tasks), keys[:1], frozen=frozen)
        self._is_first_step = False
        return result

    def _first_task(self) -> TaskBatch:
        """Return the first training task of the largest shape as a batch of one, prepared for the learner."""
        with self.resolved.running_errors("sample", "before the first step", owner=self.resolved.dataset):
            (batch,) = self._sampled(self.spec, range(1))
            return batch._replace(tasks=prepare_tasks(batch.tasks, self.device, self.dtype))

    def _require_predictions(self) -> None:
        """Raise `PluginError` unless the learner predicts `[n, outputs]` for the first training task.

        A training sees only losses, so predictions of a wrong shape would not be noticed before the evaluation.
        """
        (_, spec, task), values = self._first_task(), self.initial()
        learner = self.learner if spec == self.spec else self.parts.learner(spec)
        keys = make_key(self.settings.seed, "train", 0).to(self.device).unsqueeze(0)
        with self.resolved.running_errors("prediction", "before the first step"):
            score_tasks(learner, values, task, keys, kind=spec.kind, outputs=spec.outputs)

    def _probe(self, learner: Learner, share: float) -> Probe:
        """Return what a learner's loss of the first training task needs of a plan."""
        batch, values = self._first_task(), self.initial()
        if batch.spec != self.spec:
            learner = self._computations.learner_for(batch.spec).during(share)
        when = "before the first step" if share == 0.0 else f"at {share:.0%} of the training"
        with self.resolved.running_errors("loss", when):
            key, batched = make_key(self.settings.seed, "train", 0).to(self.device), self.settings.engine.plan == "auto"
            return probe_loss(learner, values, batch.tasks, key, batched=batched)
