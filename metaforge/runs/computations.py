"""How the training tasks of each shape are computed: the learner for them, the engine's decision, the compiled step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from metaforge.authoring.keys import make_key
from metaforge.authoring.protocols import Learner, Params, Regularizer, TaskSpec
from metaforge.data.batches import TaskBatch, examples_of
from metaforge.engine import plans
from metaforge.engine.batch import mixed_gradients, prepare_tasks
from metaforge.engine.chunks import ChunkGradients
from metaforge.engine.combining import gradients_to_compile
from metaforge.engine.compiler import Compiler
from metaforge.engine.probe import Probe
from metaforge.engine.shaped_tasks import ShapedTasks
from metaforge.errors import ConfigError
from metaforge.runs.assembly import Components


class Computation(NamedTuple):
    """The learner whose loss the outer steps differentiate, and how they are computed for it."""

    learner: Learner
    decision: plans.Decision
    compiled: ChunkGradients | None


class Computations:
    """How the training tasks of each shape are computed, in the present phase of the training.

    Args:
        parts: The plugins of the run.
        spec: The spec of the training tasks with the most classes and examples.
        learner: The run's learner, which is built for this spec.
        workload: The size of a training step on such tasks.
    """

    def __init__(self, parts: Components, spec: TaskSpec, learner: Learner, workload: plans.Workload) -> None:
        self._parts, self._spec, self._workload = parts, spec, workload
        self._learners = {spec: learner}
        self._computations: dict[TaskSpec, Computation] = {}
        self._share = 0.0
        self._probe = plans.PLAIN

    def begin_phase(self, learner: Learner, share: float, probe: Probe) -> Computation:
        """Return how a phase of the training is computed, on the tasks with the most classes and examples.

        Args:
            learner: The learner whose loss is differentiated in this phase.
            share: The fraction of the training that is done when the phase begins.
            probe: What the learner's loss needs of a plan.
        """
        self._share, self._probe = share, probe
        self._computations = {self._spec: self._computation(learner, self._workload)}
        return self._computations[self._spec]

    def of(self, batch: TaskBatch) -> Computation:
        """Return how the tasks of a batch are computed; for each shape, the learner and the step are built once."""
        if self._workload.examples is not None:
            # The chunk depends on the number of examples, in which two batches of one spec can differ.
            workload = self._workload._replace(spec=batch.spec, examples=examples_of(batch))
            return self._computation(self._phase_of(batch.spec), workload)
        if batch.spec not in self._computations:
            workload = self._workload._replace(spec=batch.spec)
            self._computations[batch.spec] = self._computation(self._phase_of(batch.spec), workload)
        return self._computations[batch.spec]

    def shaped(self, batch: TaskBatch, first: int, device: torch.device, dtype: torch.dtype) -> ShapedTasks:
        """Return the tasks of a batch, prepared, with how to compute them.

        Args:
            batch: The tasks of one shape.
            first: The number of the first episode of the local batch that they are part of.
            device: The device of the computation.
            dtype: The dtype of the data.
        """
        learner, decision, compiled = self.of(batch)
        seed = self._parts.resolved.run.seed
        keys = torch.stack([make_key(seed, "train", episode) for episode in batch.episodes])
        tasks = prepare_tasks(batch.tasks, device, dtype)
        positions = [episode - first for episode in batch.episodes]
        return ShapedTasks(learner, tasks, keys.to(device), positions, decision.chunk, compiled)

    def learner_for(self, spec: TaskSpec) -> Learner:
        """Return the run's learner for tasks of a spec."""
        if spec not in self._learners:
            self._learners[spec] = self._parts.learner(spec)
        return self._learners[spec]

    def _phase_of(self, spec: TaskSpec) -> Learner:
        if spec in self._computations:
            return self._computations[spec].learner
        return self.learner_for(spec).during(self._share)

    def _computation(self, learner: Learner, workload: plans.Workload) -> Computation:
        engine = self._parts.resolved.run.engine
        with self._parts.resolved.running_errors("set-up", always=False):
            decision = plans.decide(
                learner,
                workload,
                plans.Requested(engine.plan, engine.chunk, engine.compile, engine.threads),
                probe=self._probe,
                regularizers=self._parts.regularizers,
            )
        if not decision.compiled:
            return Computation(learner, decision, None)
        regularizers = self._parts.regularizers
        compiled = Compiler(gradients_to_compile(learner, decision.plan, regularizers, workload.tasks))
        return Computation(learner, decision, compiled)


def refuse_setting_at_fault(
    batch: Sequence[ShapedTasks],
    values: Params,
    plan: plans.Plan,
    regularizers: Sequence[Regularizer],
    error: RuntimeError,
    *,
    frozen: Sequence[str] = (),
) -> None:
    """Raise `ConfigError` if a step that fails succeeds eagerly or by plan `loop`: then the setting is at fault.

    Args:
        batch: The tasks of the step, by shape.
        values: The learner's values.
        plan: The plan by which the step fails.
        regularizers: The regularizers whose terms are part of the outer loss.
        error: What the step raises.
        frozen: Patterns of the names of values that nothing changes.
    """
    simpler: list[tuple[str, str, str, plans.Plan]] = []
    if any(shaped.compiled for shaped in batch):
        simpler.append(("engine.compile", "off", "A compiled step", plan))
    if plan != "loop":
        simpler.append(("engine.plan", "loop", f"Plan {plan!r}", "loop"))
    for setting, value, what, simple in simpler:
        try:
            eager = [shaped._replace(compiled=None) for shaped in batch]
            mixed_gradients(eager, values, plan=simple, regularizers=regularizers, frozen=frozen)
        except RuntimeError:
            continue
        first_line = str(error).strip().partition("\n")[0][:200]
        raise ConfigError(
            f"{what} cannot run {type(batch[0].learner).__name__}: {first_line}",
            where=setting,
            remedy=f"set {setting} to {value}",
        ) from error
