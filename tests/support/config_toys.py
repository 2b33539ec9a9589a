"""Toy plugins of every kind, and helpers, for the tests of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from metaforge.authoring.protocols import Adapter, Backbone, Dataset, Learner, Options, Regularizer, Tags
from metaforge.config.sources import Layer
from metaforge.registry.registry import Registry


class Inner(Options):
    scale: float | None = Field(default=1.0, gt=0, description="A nested option.")


class NearestConfig(Options):
    temperature: float = Field(default=1.0, gt=0, description="A temperature.")
    layers: list[int] = Field(default=[8, 8], description="Widths.")
    bias: bool = Field(default=True, description="Whether there is a bias.")
    floor: float | None = Field(default=None, description="An optional value.")
    inner: Inner = Field(default=Inner(), description="Nested.")


class Plain(Learner):
    """A learner that needs nothing."""

    Config = NearestConfig

    def __init__(self, config: Any, parts: Any) -> None: ...
    def init(self, key: Any) -> Any: ...
    def adapt(self, values: Any, support: Any, *, steps: Any = None, key: Any = None) -> Any: ...
    def predict(self, values: Any, fast: Any, x: Any, *, key: Any = None) -> Any: ...
    def loss(self, values: Any, task: Any, key: Any) -> Any: ...


class InnerLoop(Plain):
    """A learner that needs a backbone and an adapter."""

    class Config(Options):
        inner_steps: int = Field(default=5, ge=1, description="Inner steps.")

    tags = Tags(kinds=frozenset({"classification", "regression"}), needs=frozenset({"backbone", "adapter"}))
    defaults: ClassVar[Any] = {
        "classification": {
            "train": {"lr": 0.002, "clip": 10.0},
            "adapters": {"descent": {"lr": 0.4}},
            "learner": {"inner_steps": 3},
        },
        "regression": {"adapters": {"descent": {"lr": 0.01}}, "backbone": {"width": 40}},
    }


class Pictures(Dataset):
    """A classification data set."""

    class Config(Options):
        rotations: bool = Field(default=True, description="Rotated copies are classes.")

    kind: ClassVar[Any] = "classification"
    defaults: ClassVar[Any] = {"classification": {"train": {"lr": 0.005, "tasks": 4}, "backbone": {"name": "conv"}}}

    def __init__(self, config: Any, *, root: Path) -> None: ...
    def spec(self, split: Any, shape: Any) -> Any: ...
    def sample(self, split: Any, shape: Any, first: Any, count: Any, *, seed: Any) -> Any: ...
    def facts(self, split: Any) -> Any: ...


class Either(Pictures):
    """A data set whose kind of tasks is an option."""

    class Config(Options):
        after_colon: ClassVar[str] = "curved"
        curved: bool = Field(default=False, description="Tasks of regression.")

    @classmethod
    def variant(cls, options: Any) -> Any:
        return Curved if options.get("curved") else cls


class Curved(Either):
    """The data set with the other kind of tasks."""

    kind: ClassVar[Any] = "regression"
    defaults: ClassVar[Any] = {"regression": {"task": {"ways": 1, "shots": 7}, "backbone": {"name": "dense"}}}


class Waves(Pictures):
    """A regression data set."""

    class Config(Options):
        noise: float = Field(default=0.0, ge=0, description="Noise.")

    kind: ClassVar[Any] = "regression"
    defaults: ClassVar[Any] = {"regression": {"task": {"ways": 1, "shots": 10}, "backbone": {"name": "dense"}}}


class Conv(Backbone):
    """A backbone."""

    class Config(Options):
        channels: int = Field(default=64, ge=1, description="Channels.")

    def __init__(self, config: Any) -> None: ...
    def build(self, spec: Any) -> nn.Module:
        return nn.Identity()


class Dense(Conv):
    """Another backbone."""

    class Config(Options):
        width: int = Field(default=20, ge=1, description="Units.")


class Descent(Adapter):
    """An adapter."""

    class Config(Options):
        lr: float = Field(default=0.1, gt=0, description="Rate.")

    def __init__(self, config: Any) -> None: ...
    def update(self, meta: Any, grads: Any, state: Any, params: Any, step: Any) -> Any: ...


class Rates(Descent):
    """Another adapter."""


class Noise(Regularizer):
    """A regularizer."""

    class Config(Options):
        rate: float = Field(default=0.1, ge=0, lt=1, description="Rate.")

    def __init__(self, config: Any) -> None: ...


def toy_registry() -> Registry:
    """Return a registry with the toy plugins alone."""
    registry = Registry([], {})
    for kind, name, cls in [
        ("learner", "plain", Plain),
        ("learner", "inner-loop", InnerLoop),
        ("dataset", "pictures", Pictures),
        ("dataset", "waves", Waves),
        ("backbone", "conv", Conv),
        ("backbone", "dense", Dense),
        ("adapter", "descent", Descent),
        ("adapter", "rates", Rates),
        ("regularizer", "noise", Noise),
    ]:
        registry = registry.with_plugin(kind, name, cls)
    return registry


def with_values(**values: Any) -> Layer:
    """Return a layer of the user's with these values."""
    return Layer("test", values)


INNER_LOOP = with_values(learner="inner-loop", dataset="pictures")
PLAIN = with_values(learner="plain", dataset="pictures")


def config_of(choice: Any) -> dict[str, Any]:
    """Return the options of a plugin that a run uses."""
    assert choice is not None
    options: dict[str, Any] = choice.config.model_dump()
    return options
