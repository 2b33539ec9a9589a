"""Build the components of a run from its configuration: the data set, and learners for tasks of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from metaforge.authoring.descent import Chain
from metaforge.authoring.network import build_backbone
from metaforge.authoring.protocols import Dataset, Learner, Parts, Regularizer, TaskShape, TaskSpec
from metaforge.config.resolved import Choice, Resolved
from metaforge.data.checks import checked_spec
from metaforge.data.root import data_root
from metaforge.engine.contract import checked_learner
from metaforge.errors import ConfigError, DataError, PluginError
from metaforge.registry.loading import plugin_errors
from metaforge.registry.running import running_errors


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
        task, train = resolved.run.task, resolved.run.train
        self.task_shape = TaskShape(task.ways, task.shots, task.queries)
        self.training_shape = TaskShape(
            train.ways or task.ways, train.shots or task.shots, train.queries or task.queries
        )

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
        """Return the spec of the training tasks.

        The tasks for training, validation and evaluation are checked against the data set here, so that a run does not
        fail after its training. Raises `ConfigError` or `DataError` with the name of the setting.
        """
        found = self._spec("train", "training (train.ways, train.shots, train.queries)", self.training_shape)
        if self.training_shape.ways != self.task_shape.ways and self.learner(found).tags.fixed_ways:
            raise ConfigError(
                f"The learner {self._learner.name!r} has one output per class, so it cannot train with"
                f" {self.training_shape.ways} ways for tasks of {self.task_shape.ways}.",
                where="train.ways",
                remedy="leave train.ways out, or set task.ways to the same number",
            )
        if self._learner.cls.tags.uses_classes and not found.classes:
            raise ConfigError(
                f"The learner {self._learner.name!r} reads the numbers of classes, but the tasks of the data set"
                f" {self._dataset.name!r} have none.",
                where="dataset.name",
                remedy="choose a data set whose spec has a number of classes, such as one of images",
            )
        settings = self.resolved.run
        if settings.train.validate_every:
            self._spec("val", "validation (train.validate_every)", self.task_shape)
        for shots in settings.evaluate.shots or [self.task_shape.shots]:
            self._spec(settings.evaluate.split, "evaluation (evaluate.split)", self.task_shape._replace(shots=shots))
        return found

    def _spec(self, split: str, purpose: str, shape: TaskShape) -> TaskSpec:
        try:
            return checked_spec(self.dataset, split, shape, seed=self.resolved.run.seed)
        except (ConfigError, DataError, PluginError) as error:
            where = f"the {split!r} split, for {purpose}; {error.where}"
            raise type(error)(error.what, where=where, remedy=error.remedy) from error

    def learner(self, spec: TaskSpec) -> Learner:
        """Return a learner for tasks of a spec; all learners of one run can use the same values."""
        adapters = _instances(self.resolved.adapters)
        parts = Parts(spec, self._backbone_maker(spec), Chain(adapters) if adapters else None, self._regularizers)
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

    def _backbone_maker(self, spec: TaskSpec) -> Any:
        choice = self.resolved.backbone
        if choice is None:
            return None
        backbone = choice.instantiate()

        def build(context: int = 0) -> nn.Module:
            with plugin_errors(choice.entry, "cannot build a network for these tasks", keep_metaforge_errors=True):
                module = build_backbone(backbone, spec, context)
                if not isinstance(module, nn.Module):
                    raise TypeError(f"build returns {type(module).__name__}, not a module")
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
