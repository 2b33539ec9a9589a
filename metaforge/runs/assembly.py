"""Build the components of a run from its configuration: the data set, and learners for tasks of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from metaforge.authoring.descent import Chain
from metaforge.authoring.network import build_backbone
from metaforge.authoring.protocols import Dataset, Learner, Params, Parts, Regularizer, TaskShape, TaskSpec
from metaforge.config.resolved import Choice, Resolved
from metaforge.data.checks import checked_spec, checked_varied_spec
from metaforge.data.root import data_root
from metaforge.data.varied import EpisodeBounds, varied_spec
from metaforge.engine.contract import checked_learner
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.registry.loading import plugin_errors
from metaforge.registry.running import running_errors
from metaforge.results.episode_scores import EvaluationCase
from metaforge.results.evaluation_cases import require_class_sizes, require_varied, varied_bounds
from metaforge.runs.outside_weights import load_weights
from metaforge.runs.task_shapes import training_shapes


class Components:
    """The plugins of a configuration as objects: data set, regularizers, and learners, which are built on demand."""

    def __init__(self, resolved: Resolved) -> None:
        if resolved.learner is None or resolved.dataset is None:
            raise ConfigError(
                "A run needs a learner and a data set.", remedy="choose them with --learner and --dataset"
            )
        self.resolved = resolved
        self._learner, self._dataset = resolved.learner, resolved.dataset
        self.dataset: Dataset = self._dataset.instantiate(root=data_root())
        self._regularizers: dict[str, Regularizer] = _instances(resolved.regularizers)
        self._require_useful_regularizers()
        # The specs that were checked, each with its split: the run folder records them.
        self.specs: list[tuple[str, TaskSpec]] = []
        # The batch norm layers of the backbone whose running statistics came from a file of weights.
        self.loaded_statistics: list[str] = []
        settings = resolved.run
        self.task_shape = TaskShape(settings.task.ways, settings.task.shots, settings.task.queries)
        self.training_shapes = training_shapes(settings)
        bounds = varied_bounds(settings)
        self.training_bounds = bounds if (settings.train.sampler or settings.task.sampler) == "varied" else None
        self.evaluation_bounds = bounds if settings.task.sampler == "varied" else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values and data; matrix products and convolutions may use a lower precision."""
        return torch.float64 if self.resolved.run.engine.dtype == "float64" else torch.float32

    @property
    def regularizers(self) -> tuple[Regularizer, ...]:
        """The regularizers, whose terms are added to the outer loss."""
        return tuple(self._regularizers.values())

    def _require_useful_regularizers(self) -> None:
        """Raise `ConfigError` for a regularizer that needs an inner loop, or terms, that the learner does not have."""
        tags = self._learner.cls.tags
        for name, regularizer in self._regularizers.items():
            if missing := sorted(regularizer.terms - tags.terms):
                raise ConfigError(
                    f"The regularizer {name!r} reads {' and '.join(missing)}, which the learner {self._learner.name!r}"
                    " does not give.",
                    where=f"regularizers.{name}",
                    remedy="leave it out, or choose a learner whose terms include them (`metaforge describe LEARNER`)",
                )
            if "adapter" not in tags.needs and regularizer.needs_inner_loop():
                raise ConfigError(
                    f"The regularizer {name!r}, as configured, acts only where an adapter moves the network's"
                    f" weights; the learner {self._learner.name!r} uses none.",
                    where=f"regularizers.{name}",
                    remedy=f"change its options (`metaforge describe {name}` lists them), leave it out, or choose a"
                    " learner that uses an adapter",
                )

    def training_spec(self) -> TaskSpec:
        """Return the spec of the training tasks with the most classes and examples.

        The tasks for training, validation and evaluation are checked against the data set here, so that a run does not
        fail after its training. Raises `ConfigError` or `DataError` with the name of the setting.
        """
        found = self._training_spec()
        if not found.classes and self.learner(found).tags.uses_classes:
            raise ConfigError(
                f"The learner {self._learner.name!r} reads the numbers of classes, but the tasks of the data set"
                f" {self._dataset.name!r} have none.",
                where="dataset.name",
                remedy="choose a data set whose spec has a number of classes, such as one of images",
            )
        settings = self.resolved.run
        if settings.train.validate_every:
            self._spec("val", "validation (train.validate_every)", self.evaluation_bounds or self.task_shape)
        wanted = [self.task_shape._replace(shots=shots) for shots in settings.evaluate.shots]
        for shape in wanted or (self.evaluation_bounds or self.task_shape,):
            self._spec(settings.evaluate.split, "evaluation (evaluate.split)", shape)
        return found

    def _training_spec(self) -> TaskSpec:
        """Return the spec of the training tasks with the most classes and examples; check that the learner fits them.

        Raises `ConfigError` for a learner of a fixed number of classes, if tasks have others.
        """
        shapes, ways = self.training_shapes, self.task_shape.ways
        if self.training_bounds is not None:
            return self._spec("train", "training (train.sampler)", self.training_bounds)
        for shape in dict.fromkeys(shapes.extremes):
            found = self._spec("train", "training (train.ways, train.shots, train.queries)", shape)
        if {*shapes.ways} != {ways} and self.learner(found).tags.fixed_ways:
            numbers = shapes.ways[0] if len(shapes.ways) == 1 else list(shapes.ways)
            raise ConfigError(
                f"The learner {self._learner.name!r} has one output per class, so it cannot train with"
                f" {numbers} ways for tasks of {ways}.",
                where="train.ways",
                remedy="leave train.ways out, or set task.ways to the same number",
            )
        return found

    def _spec(self, split: str, purpose: str, shape: TaskShape | EpisodeBounds) -> TaskSpec:
        """Return the spec of tasks of a shape, or of varied tasks; its first episode is checked."""
        try:
            if isinstance(shape, TaskShape):
                found = checked_spec(self.dataset, split, shape, seed=self.resolved.run.seed)
            else:
                require_class_sizes(self.dataset, split, self._dataset.name)
                found = checked_varied_spec(self.dataset, split, shape, seed=self.resolved.run.seed)
                tags, where = self.learner(found).tags, "task.sampler, train.sampler"
                require_varied(self._learner.name, tags, self.task_shape.ways, shape, where)
        except (ConfigError, DataError, PluginError) as error:
            where = f"the {split!r} split, for {purpose}; {error.where}"
            raise type(error)(error.what, where=where, remedy=error.remedy) from error
        self.specs.append((split, found))
        return found

    def evaluation_case(self, split: str) -> EvaluationCase:
        """Return how to score the learner on the tasks of a split that are like those of the evaluation."""
        bounds = self.evaluation_bounds
        if bounds is None:
            spec = self.dataset.spec(split, self.task_shape)
            return EvaluationCase(spec, self.learner(spec))
        spec = varied_spec(self.dataset, split, bounds)
        return EvaluationCase(spec, self.learner(spec), bounds=bounds, build=cache(self.learner))

    def learner(self, spec: TaskSpec, weights: Params | None = None) -> Learner:
        """Return a learner for tasks of a spec; all learners of one run can use the same values.

        Args:
            spec: The spec of the tasks.
            weights: The weights of every network that the backbone builds. They reach the values that `init` returns;
                for anything but the initial values of a new run it is None.
        """
        adapters = _instances(self.resolved.adapters)
        chain, frozen = Chain(adapters) if adapters else None, self.resolved.run.train.freeze
        if chain is not None and not chain.tags.rate:
            raise ConfigError(
                f"No adapter of the chain {', '.join(adapters)} has a learning rate.",
                where="adapters",
                remedy="add one that has, behind them, such as the learner's usual one (`metaforge describe LEARNER`)",
            )
        parts = Parts(spec, self.backbone_maker(spec, weights), chain, self._regularizers, frozen)
        others = [choice for choice in self.resolved.choices() if choice is not self._learner]
        with (
            plugin_errors(self._learner.entry, "cannot be built", keep_metaforge_errors=True),
            # The learner calls other plugins when it is built; an error in one of them is not the learner's.
            running_errors(others, self._learner, "construction", always=False),
        ):
            learner = self._learner.cls(self._learner.config, parts)
        with self.resolved.running_errors("construction"):
            return checked_learner(learner)

    def provenance(self) -> dict[str, str]:
        """Return the distribution and version of every plugin of the run, by kind and name."""
        return {
            f"{choice.entry.kind} {choice.name}": f"{choice.entry.distribution} {choice.entry.version}".strip()
            for choice in self.resolved.choices()
        }

    def backbone_maker(self, spec: TaskSpec, weights: Params | None = None) -> Any:
        """Return a function that builds the network for tasks of a spec; None if the run has no backbone."""
        choice = self.resolved.backbone
        if choice is None:
            return None
        backbone = choice.instantiate()

        def build(context: int = 0) -> nn.Module:
            with plugin_errors(choice.entry, "cannot build a network for these tasks", keep_metaforge_errors=True):
                module = build_backbone(backbone, spec, context)
                if not isinstance(module, nn.Module):
                    raise TypeError(f"build returns {type(module).__name__}, not a module")
            if weights is not None:
                self.loaded_statistics = load_weights(module, weights)
            return module

        return build


def _instances(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the plugins by the names with which their values are prefixed.

    The name is the qualified one only if two plugins of the run have the same bare name. So it does not depend on which
    other distributions are installed.
    """
    names = [choice.entry.name for choice in choices]
    return {
        choice.entry.qualified if names.count(name) > 1 else name: choice.instantiate()
        for name, choice in zip(names, choices, strict=True)
    }
