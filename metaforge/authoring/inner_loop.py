"""The inner loop: adapting the weights of a network by gradients of the support loss, and learners built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from metaforge.authoring.descent import Adjoint, descend, relative_slope
from metaforge.authoring.functional import add_params, advance_state, matching, prefixed, sum_of
from metaforge.authoring.hooks import hookimpl
from metaforge.authoring.keys import fold_in
from metaforge.authoring.model_learner import ModelLearner
from metaforge.authoring.network import blank_examples
from metaforge.authoring.protocols import (
    Aux,
    Examples,
    GradientTransform,
    Key,
    NormPolicy,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
)
from metaforge.authoring.terms import INNER_LOOP_TERMS, inner_loop_terms, require_entropies
from metaforge.errors import ConfigError
from metaforge.system.streams import note_stream

# The largest slope at the end of an inner loop, relative to that at its start, that counts as a minimum.
LARGEST_RESIDUAL = 0.1


class InnerLoopOptions(Options):
    """Options of every learner with an inner loop.

    Example:
        >>> from metaforge.authoring import InnerLoopOptions
        >>> InnerLoopOptions(steps=5).test_steps
        3
    """

    steps: int = Field(1, ge=0, le=1000, description="inner steps in training")
    test_steps: int = Field(3, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("transductive", description="which statistics batch norm uses for queries")
    adapt: Literal["weights", "all", "head", "body"] | list[str] = Field(
        "weights",
        description="parameters that the inner loop adapts: all but those of norm layers (weights), all, those of the"
        " linear head, those of the body but not of its norm layers, or the names that match a list of patterns",
    )
    adjoint: Literal["unroll", "recompute", "first-order", "implicit"] = Field(
        "unroll",
        description="how the inner loop is differentiated: through its steps; through its steps, computed again to save"
        " memory; with its gradients as constants; or implicitly, as a minimum of the support loss",
    )
    proximal: float = Field(
        0.0, ge=0, description="factor λ of λ/2 ‖φ - θ‖², which pulls the adapted parameters φ to their start θ"
    )
    solver: Literal["cg", "neumann"] = Field(
        "cg", description="how the implicit adjoint solves its linear system: conjugate gradients or Neumann series"
    )
    solver_steps: int = Field(5, ge=1, le=1000, description="Hessian-vector products of the solver")
    solver_rate: float = Field(0.1, gt=0, description="rate of the Neumann series, below 2 / largest eigenvalue")

    @model_validator(mode="before")
    @classmethod
    def _rename_recompute(cls, options: Any) -> Any:
        """Accept the option `recompute` of runs that were saved before `adjoint` replaced it."""
        if not isinstance(options, Mapping) or not isinstance(options.get("recompute"), bool):
            return options
        chosen = {"adjoint": "recompute"} if options["recompute"] else {}
        return chosen | {name: value for name, value in options.items() if name != "recompute"}


class InnerLoopLearner(ModelLearner):
    """Base class of learners that adapt a network's weights with an adapter on the support set.

    The network is the backbone with a linear head. A subclass defines `loss`, usually by `descend` and `query_loss`.

    Args:
        config: The learner's options.
        parts: What the learner is built from, including a backbone and an adapter.
        outputs: Number of outputs of the linear head: by default that of the spec, and 0 for a network without a head.

    Attributes:
        adjoint: How the inner loop is differentiated.
        adapter: The transform from gradients to updates.
        criterion: The task loss of (prediction, target).
        adapted: Names of the values that the inner loop adapts; none of them is frozen.
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
    noted: bool = False
    terms: frozenset[str]

    def __init__(self, config: InnerLoopOptions, parts: Parts, *, outputs: int | None = None) -> None:
        outputs = parts.spec.outputs if outputs is None else outputs or None
        super().__init__(config, parts, norm=config.norm, steps=config.steps, outputs=outputs)
        assert parts.adapter is not None, "the learner's tags do not name an adapter among its needs"
        self.adapter, self.criterion, self.steps = parts.adapter, parts.spec.kind.loss, config.test_steps
        self.adapted = self._adapted(parts.frozen)
        self.adjoint = Adjoint(config.adjoint, config.solver, config.solver_steps, config.solver_rate)
        # The implicit gradient is exact at convergence, and only the learner's class can say when that is.
        unknown = config.adjoint == "implicit" and not self.tags.converges_at
        if config.adjoint == "first-order" or self.adapter.tags.detaches or unknown:
            self.tags = replace(self.tags, exact_meta_gradient=False)
        self.terms = parts.terms
        require_entropies(self.terms, parts.spec.kind)

    def _adapted(self, frozen: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the values that the option `adapt` chooses and that are not frozen."""
        chosen = self.model.choose(self.config.adapt)
        adapted = tuple(name for name in chosen if name not in matching(chosen, frozen))
        if not adapted and frozen:
            raise ConfigError(
                "Every value that the inner loop would adapt is frozen.",
                where="train.freeze",
                remedy="freeze less, such as the body of the network without its head",
            )
        return adapted

    def init(self, key: Key) -> Params:
        """Return the values of the network and of the adapter; equal for equal keys."""
        values = super().init(key)
        params = self.start(values, blank_examples(self.spec), None)
        return values | prefixed("adapters", self.adapter.init(params, fold_in(key, "adapters")))

    def start(self, values: Params, support: Examples, key: Key | None) -> Params:
        """Return the parameters with which the inner loop of a task begins: by default the `adapted` entries.

        A subclass can return others, which then exist only within a task, such as a head made from prototypes. The
        names must not depend on the support set. `init` calls this once with a support set of zeros, so that the
        adapter can make what it meta-learns for each of the names.

        Args:
            values: The learner's values.
            support: The support set.
            key: The key of the task's noise, or None in evaluation.
        """
        return {name: values[name] for name in self.adapted}

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
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support")), state

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on `batch`, averaged over the draws, and the state changes of the last draw."""
        losses, state = [], Params()
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw))
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
        at = Pass(key, self.config.steps, "query")
        prediction, change = self.model.observe(values | advance_state(values, state) | fast, task.query.x, at)
        metrics = {"score": self.spec.kind.score(prediction, task.query.y).detach()}
        if self.adjoint.method == "implicit":
            metrics["inner_residual"] = self.inner_residual(values, fast, task.support, key)

        def before() -> Tensor:
            start = self.descend(values, task.support, 0, key)[0]
            return self.model(values | start, task.query.x, Pass(key, 0, "query"))

        terms = inner_loop_terms(self.terms, before, prediction, task.query.y, self.criterion)
        return self.criterion(prediction, task.query.y), Aux(metrics, add_params(state, change), terms)

    def inner_residual(self, values: Params, fast: Params, support: Examples, key: Key) -> Tensor:
        """Return how far from a minimum the inner loop ended, relative to its start: see `relative_slope`."""
        start, last = self.start(values, support, key), max(self.config.steps - 1, 0)
        return relative_slope(self.objective, values, start, fast, last, *support, key, proximal=self.config.proximal)

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
        """Print a note, once in a run, if the inner loop is too far from a minimum for the implicit adjoint."""
        residual = metrics.get("inner_residual", 0.0)
        if residual > LARGEST_RESIDUAL and not self.noted:
            self.noted = True
            print(
                f"Note: the inner loop has not converged (outer step {step}: the gradient of its loss fell to"
                f" {residual:.0%} only), so the implicit meta-gradient is not exact: take more inner steps, a larger"
                " inner rate, or a larger learner.proximal.",
                file=note_stream(),
            )

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted parameters after `steps` inner steps, by default `steps` or `test_steps` of the options.

        With a key, as in training, the default is the option `steps`; without a key it is `test_steps`. In a kind of
        task whose evaluation needs a key, it is `test_steps` in any case.
        """
        if steps is None:
            training = key is not None and not self.spec.kind.needs_key
            steps = self.config.steps if training else self.config.test_steps
        return self.descend(values, support, steps, key)[0]

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]` for `x` `[n, *x_shape]`."""
        return self.model(values | fast, x, Pass(key, self.config.steps, "query"))
