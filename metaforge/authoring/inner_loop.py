"""The inner loop: adapting the weights of a network by gradients of the support loss, and learners built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor

from metaforge.authoring.adapted import adapted_names, require_dependence
from metaforge.authoring.descent import Adjoint, descend
from metaforge.authoring.functional import (
    add_params,
    advance_state,
    detach_params,
    gradient,
    prefixed,
    split_state,
    sum_of,
)
from metaforge.authoring.hooks import hookimpl
from metaforge.authoring.inner_loop_options import InnerLoopOptions
from metaforge.authoring.keys import fold_in
from metaforge.authoring.kinds import score, task_loss
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.network import blank_examples
from metaforge.authoring.protocols import (
    Aux,
    Examples,
    GradientTransform,
    Key,
    Learner,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
)
from metaforge.authoring.residuals import ImplicitNotes, relative_slope, solver_residual
from metaforge.authoring.terms import INNER_LOOP_TERMS, inner_loop_terms, require_entropies
from metaforge.system.streams import note_stream


class InnerLoopLearner(ModelLearner):
    """Base class of learners that adapt a network's weights with an adapter on the support set.

    The network is the backbone with a linear head. A subclass defines `loss`, usually by `descend` and `query_loss`.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone and an adapter.
        outputs: Number of outputs of the linear head: by default that of the spec, and 0 for a network without a head.
        context: Size of a context vector that the network gets beside the inputs; 0 for none. It is the parameter
            `context` of `start`, so it exists only within a task, and the inner loop adapts it.

    Attributes:
        adjoint: How the inner loop is differentiated.
        adapter: The transform from gradients to updates.
        criterion: The task loss of (prediction, target).
        adapted: Names of the values that the inner loop adapts; none of them is frozen.
        context: Size of the context vector; 0 for none.
        terms: Names of the terms that the run's regularizers read.

    Example:
        Differentiate through the inner loop; the gradient of `loss` is then the meta-gradient.

        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import (
        ...     Examples, GradientTransform, InnerLoopLearner, InnerLoopOptions, Parts, TaskShape, TaskSpec, make_key
        ... )
        >>> class SecondOrder(InnerLoopLearner):
        ...     Config = InnerLoopOptions
        ...
        ...     def loss(self, values, task, key):
        ...         fast, state = self.descend(values, task.support, self.config.steps, key)
        ...         return self.query_loss(values, fast, task, key, state)
        >>> class Descent(GradientTransform):
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.1 * g for name, g in grads.items()}, state
        >>> spec = TaskSpec("regression", x_shape=(1,), outputs=1, shape=TaskShape(ways=1, shots=2, queries=2))
        >>> parts = Parts(spec, backbone=lambda: nn.Linear(1, 4), adapter=Descent())
        >>> learner = SecondOrder(InnerLoopOptions(steps=2), parts)
        >>> values = learner.init(make_key(0))
        >>> fast = learner.adapt(values, Examples(torch.ones(2, 1), torch.ones(2, 1)))
        >>> learner.predict(values, fast, torch.ones(3, 1)).shape
        torch.Size([3, 1])
    """

    tags: Tags = Tags(
        kinds=frozenset({"classification", "regression"}),
        needs=frozenset({"backbone", "adapter"}),
        adapts=True,
        terms=INNER_LOOP_TERMS,
        other_kinds=True,
        varied_shots=True,
    )
    config: InnerLoopOptions
    adjoint: Adjoint
    adapter: GradientTransform
    criterion: Callable[[Tensor, Tensor], Tensor]
    adapted: tuple[str, ...]
    context: int
    terms: frozenset[str]

    def __init__(self, config: InnerLoopOptions, parts: Parts, *, outputs: int | None = None, context: int = 0) -> None:
        outputs = parts.spec.outputs if outputs is None else outputs or None
        super().__init__(config, parts, norm=config.norm, steps=config.steps, outputs=outputs, context=context)
        self.context = context
        assert parts.adapter is not None, "the learner's tags do not name an adapter among its needs"
        self.adapter, self.criterion, self.steps = parts.adapter, partial(task_loss, parts.spec.kind), config.test_steps
        # A subclass with another `start` may adapt what exists only within a task, and no value.
        optional = context > 0 or type(self).start is not InnerLoopLearner.start
        self.adapted = adapted_names(self.model, config.adapt, parts.frozen, optional=optional)
        self._frozen = parts.frozen
        self.adjoint = Adjoint(config.adjoint, config.solver, config.solver_steps, config.solver_rate)
        # Without a step nothing is solved: the adapted parameters are those of the start.
        self._solves = config.adjoint == "implicit" and config.steps > 0
        # With phases, the learner of the present one may have another adjoint than this one.
        measured = self._solves and type(self).during is Learner.during
        self._notes = ImplicitNotes(config.solver, required_of=type(self).__name__ if measured else "")
        # The implicit gradient is exact at convergence, by any path; only the learner's class can say when that is.
        constant = not self.tags.converges_at if config.adjoint == "implicit" else self.adapter.tags.detaches
        if config.adjoint == "first-order" or constant:
            self.tags = replace(self.tags, exact_meta_gradient=False)
        self.terms = parts.terms
        require_entropies(self.terms, parts.spec.kind)

    def init(self, key: Key) -> Params:
        """Return the values of the network and of the adapter; equal for equal keys.

        Raises:
            ConfigError: The meta-gradient would be zero: the inner loop adapts every value that is trained, and its
                minimum, which the implicit adjoint differentiates, does not depend on where it starts.
        """
        values = super().init(key)
        params = self.start(values, blank_examples(self.spec), None)
        # A subclass with another `init` may have values of its own, which the minimum depends on.
        if self._solves and not self.config.proximal and type(self).init is InnerLoopLearner.init:
            require_dependence(split_state(values, self._frozen)[0], params)
        return values | prefixed("adapters", self.adapter.init(params, fold_in(key, "adapters")))

    def start(self, values: Params, support: Examples, key: Key | None) -> Params:
        """Return the parameters with which the inner loop of a task begins.

        By default these are the `adapted` entries, and a context of zeros if there is one.

        A subclass can return others, which then exist only within a task, such as a head made from prototypes. The
        names must not depend on the support set. `init` calls this once with a support set of zeros, so that the
        adapter can make what it meta-learns for each of the names.

        Args:
            values: The learner's values.
            support: The support set.
            key: The key of the task's noise, or None in evaluation.
        """
        context = {"context": support.x.new_zeros(self.context)} if self.context else {}
        return {name: values[name] for name in self.adapted} | context

    def objective(self, values: Params, step: int, x: Tensor, y: Tensor, *keys: Tensor) -> tuple[Tensor, Params]:
        """Return `support_loss` as a function of tensors alone, which the adjoints need."""
        return self.support_loss(values, Examples(x, y), step, *(keys or (None,)))

    def descend(self, values: Params, support: Examples, steps: int, key: Key | None) -> tuple[Params, Params]:
        """Adapt the network to a support set; `adjoint` says how the result is differentiated.

        Args:
            values: The learner's values.
            support: The support set.
            steps: Number of inner steps.
            key: The key of the task's noise, or None in evaluation.

        Returns:
            The adapted parameters, together with the statistics that batch norm uses for queries if they depend on the
            support set; and what to add to the `state.` entries.
        """
        start = self.start(values, support, key)
        inputs = support if key is None else (*support, key)
        how, factor = self.adjoint, self.config.proximal
        fast, state = descend(self.objective, values, start, self.adapter, steps, *inputs, adjoint=how, proximal=factor)
        return fast | self._statistics(values | fast, support, Pass(key, steps, "support")), state

    def _statistics(self, values: Params, support: Examples, at: Pass) -> Params:
        return self.model.statistics(values, support.x, at, self._context_of(values))

    def _context_of(self, values: Params) -> Tensor | None:
        """Return the context that the network gets beside its inputs, or None if it takes none."""
        return values["context"] if self.context else None

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on `batch`, averaged over the draws, and the state changes of the last draw."""
        losses, state, context = [], Params(), self._context_of(values)
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw), context)
            losses.append(self.criterion(prediction, batch.y))
        return sum_of(losses) / len(losses), state

    def query_loss(self, values: Params, fast: Params, task: Task, key: Key, state: Params) -> tuple[Tensor, Aux]:
        """Return the task loss on the query set with the adapted parameters, and the score as a metric.

        If regularizers read them, it also gives the terms `loss_before`, `entropy_before` and `entropy_after`. A
        subclass that does not call this method removes them from its tags.

        Args:
            values: The learner's values.
            fast: The adapted parameters.
            task: The task.
            key: The key of the task's noise.
            state: What the inner loop adds to the `state.` entries. The changes by the query pass are added to it.
        """
        current = values | advance_state(values, state)
        prediction, change = self._query(current | fast, task, key, self.config.steps)
        metrics = {"score": score(self.spec.kind, prediction, task.query.y).detach()}
        if self._solves:
            metrics["inner_residual"] = self.inner_residual(values, fast, task.support, key)
            if self.config.solver_residual:
                metrics["solver_residual"] = self.solver_residual(current, fast, task, key)

        def before() -> Tensor:
            return self._query(values | self.descend(values, task.support, 0, key)[0], task, key, 0)[0]

        terms = inner_loop_terms(self.terms, before, prediction, task.query.y, self.criterion)
        return self.criterion(prediction, task.query.y), Aux(metrics, add_params(state, change), terms)

    def _query(self, values: Params, task: Task, key: Key, step: int) -> tuple[Tensor, Params]:
        return self.model.observe(values, task.query.x, Pass(key, step, "query"), self._context_of(values))

    def inner_residual(self, values: Params, fast: Params, support: Examples, key: Key) -> Tensor:
        """Return how far from a minimum the inner loop ended, relative to its start: see `relative_slope`."""
        start, last = self.start(values, support, key), max(self.config.steps - 1, 0)
        return relative_slope(self.objective, values, start, fast, last, *support, key, proximal=self.config.proximal)

    def solver_residual(self, values: Params, fast: Params, task: Task, key: Key) -> Tensor:
        """Return how far the implicit adjoint is from the solution of its linear system, for the task loss on queries.

        See `metaforge.authoring.residuals`. It costs one more solution of the system.
        """
        values = detach_params(values)
        start, last = self.start(values, task.support, key), max(self.config.steps - 1, 0)
        at = Pass(key, self.config.steps, "support")

        def query(params: Params) -> tuple[Tensor, Params]:
            adapted = values | params
            prediction, _ = self._query(
                adapted | self._statistics(adapted, task.support, at), task, key, self.config.steps
            )
            return self.criterion(prediction, task.query.y), {}

        # fmt: off
        grads, _ = gradient(query, {name: fast[name].detach() for name in start}, differentiable=False)
        return solver_residual(self.objective, values, start, fast, last, *task.support, key,
                                        adjoint=self.adjoint, query_grads=grads, proximal=self.config.proximal)
        # fmt: on

    @hookimpl
    def metaforge_run_start(self) -> None:
        """Print a note if batch norm normalises the inner loop of an evaluation otherwise than that of the training."""
        if self.norm == "running":
            print(
                "Note: learner.norm is running: in evaluation the inner loop takes its gradients with running averages"
                " that it never had in training, and scores far below it. Use transductive, support or per-step.",
                file=note_stream(),
            )

    @hookimpl
    def metaforge_after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print a note, once in a run for each cause, if the implicit meta-gradient is not exact.

        Raises:
            ConfigError: The learner's `loss` does not say how far from exact it is.
        """
        self._notes.after_step(step, metrics)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted parameters after `steps` inner steps, by default `steps` or `test_steps` of the options.

        With a key, as in training, the default is the option `steps`; without a key it is `test_steps`. In a kind of
        task whose evaluation needs a key, it is `test_steps` in any case, and the key is for the `support_loss` of a
        subclass: that of this class, which has no environment, would draw the noise of a training from it.
        """
        noise = self._noise(key)
        if steps is None:
            steps = self.config.test_steps if noise is None else self.config.steps
        own = type(self).support_loss is not InnerLoopLearner.support_loss
        return self.descend(values, support, steps, key if own else noise)[0]

    def _noise(self, key: Key | None) -> Key | None:
        """Return the key of the network's noise: None in evaluation, where a key is for the noise of an environment."""
        return None if self.spec.kind.needs_key else key

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]` for `x` `[n, *x_shape]`.

        In a kind of task whose evaluation needs a key, the network draws no noise from it.
        """
        values = values | fast
        return self.model(values, x, Pass(self._noise(key), self.config.steps, "query"), self._context_of(values))
