"""What learners share that adapt a network's weights by gradients on the support set."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from metaforge.functional import added, advanced, criterion, descend, prefixed, score, sum_of
from metaforge.keys import fold_in
from metaforge.model import Model, with_head
from metaforge.protocols import (
    Aux,
    Examples,
    GradientTransform,
    Key,
    Learner,
    NormPolicy,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    TaskSpec,
)


class InnerLoopOptions(Options):
    """Options of every learner with an inner loop."""

    steps: int = Field(1, ge=0, le=1000, description="inner steps in training")
    test_steps: int = Field(3, ge=0, le=1000, description="inner steps in evaluation")
    norm: NormPolicy = Field("transductive", description="whose statistics batch norm uses for queries")
    adapt: Literal["weights", "all"] = Field(
        "weights", description="what the inner loop moves: all but the norm layers' own parameters, or all"
    )
    recompute: bool = Field(
        False, description="do inner steps again for the meta-gradient, not keep them: less memory for more time"
    )


class InnerLoopLearner(Learner):
    """A network whose weights an adapter moves on the support set; concrete learners say what their loss is."""

    tags: ClassVar[Tags] = Tags(
        kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone", "adapter"}), adapts=True
    )
    first_order: ClassVar[bool] = False
    config: InnerLoopOptions
    spec: TaskSpec
    adapter: GradientTransform
    model: Model
    criterion: Callable[[Tensor, Tensor], Tensor]
    adapted: tuple[str, ...]

    def __init__(self, config: InnerLoopOptions, parts: Parts) -> None:
        assert parts.backbone is not None
        assert parts.adapter is not None
        self.config, self.spec, self.adapter = config, parts.spec, parts.adapter
        self.model = Model(
            with_head(parts.backbone, parts.spec.outputs, parts.spec.x_shape),
            norm=config.norm,
            steps=config.steps,
            regularizers=parts.regularizers,
        )
        self.criterion = criterion(parts.spec.kind)
        self.norm, self.transductive, self.steps = self.model.norm, self.model.transductive, config.test_steps
        frozen = self.model.norm_names if config.adapt == "weights" else frozenset[str]()
        self.adapted = tuple(n for n in (f"model.{name}" for name in self.model.names) if n not in frozen)

    def init(self, key: Key) -> Params:
        """Return the network's values and the adapter's."""
        values = self.model.init(fold_in(key, "model"))
        return values | prefixed("adapters", self.adapter.init({name: values[name] for name in self.adapted}))

    def descend(
        self, values: Params, support: Examples, steps: int, key: Key | None, *, first_order: bool = False
    ) -> tuple[Params, Params]:
        """Return (adapted entries, what to add to the state) after `steps` inner steps on the support loss."""

        def objective(moved: Params, step: int, x: Tensor, y: Tensor, *drawn: Tensor) -> tuple[Tensor, Params]:
            return self.support_loss(moved, Examples(x, y), step, *(drawn or (None,)))

        fast = {name: values[name] for name in self.adapted}
        given = support if key is None else (*support, key)
        again = self.config.recompute
        fast, state = descend(
            objective, values, fast, self.adapter, steps, *given, first_order=first_order, recompute=again
        )
        return fast | self.model.statistics(values | fast, support.x, Pass(key, steps, "support")), state

    def support_loss(self, values: Params, batch: Examples, step: int, key: Key | None) -> tuple[Tensor, Params]:
        """Return the task loss on `batch`, averaged over a regularizer's draws, and what to add to the state."""
        losses, state = [], Params()
        for draw in range(self.model.draws(key)):
            prediction, state = self.model.observe(values, batch.x, Pass(key, step, "support", draw))
            losses.append(self.criterion(prediction, batch.y))
        return sum_of(losses) / len(losses), state

    def query_loss(self, values: Params, fast: Params, task: Task, key: Key, state: Params) -> tuple[Tensor, Aux]:
        """Return the task loss on the query set under the adapted entries, with the score as a figure."""
        at = Pass(key, self.config.steps, "query")
        prediction, more = self.model.observe(values | advanced(values, state) | fast, task.query.x, at)
        figures = {"score": score(self.spec.kind, prediction, task.query.y).detach()}
        return self.criterion(prediction, task.query.y), Aux(figures, added(state, more))

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return the adapted weights."""
        if steps is None:
            steps = self.config.test_steps if key is None else self.config.steps
        return self.descend(values, support, steps, key, first_order=self.first_order)[0]

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the adapted network's output `[n, outputs]`."""
        return self.model(values | fast, x, Pass(key, self.config.steps, "query"))
