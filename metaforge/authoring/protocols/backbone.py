"""The protocols of backbones, and the options that they share: a file of weights, and pretrained weights."""

from __future__ import annotations

from typing import Any, Protocol, Self

from pydantic import Field, model_validator
from torch import nn

from metaforge.authoring.protocols.component import Component, Options
from metaforge.authoring.protocols.types import Params, TaskSpec


class BackboneOptions(Options):
    """Base class of the `Config` of backbones whose initial weights can come from a file.

    The file has the tensors of `build(spec).state_dict()` in the safetensors format. MetaForge reads it, not the
    backbone: once, when a run begins, whose values the tensors become. A run does not need the file after that.

    Attributes:
        weights: Path of the file, or None for the weights with which `build` initialises the network.

    Example:
        >>> from pydantic import Field
        >>> from metaforge.authoring import BackboneOptions
        >>> class WideOptions(BackboneOptions):
        ...     width: int = Field(512, ge=1, le=4096, description="units of each layer")
        >>> WideOptions(weights="wide.safetensors")
        WideOptions(weights='wide.safetensors', width=512)
    """

    weights: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="safetensors file of the initial weights, which is read once, when a run begins",
    )


class PretrainedOptions(BackboneOptions):
    """Base class of the `Config` of a `PretrainedBackbone`: its initial weights can come from a file or from itself.

    Attributes:
        pretrained: Whether a run begins with the weights that the backbone's method `pretrained` returns.

    Raises:
        pydantic.ValidationError: Both sources of weights are chosen.

    Example:
        >>> from metaforge.authoring import PretrainedOptions
        >>> PretrainedOptions(pretrained=True)
        PretrainedOptions(weights=None, pretrained=True)
    """

    pretrained: bool = Field(
        False, description="begin with trained weights, which are downloaded once, when a run begins"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights exclude each other")
        return self


class Backbone(Component, Protocol):
    """Builds the network that maps inputs to features.

    Args:
        config: The backbone's validated options, an instance of its `Config`.

    Example:
        >>> import math
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Backbone, Options, TaskShape, TaskSpec
        >>> class OneLayer(Backbone):
        ...     "One linear layer with batch norm and ReLU."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def build(self, spec):
        ...         linear = nn.Linear(math.prod(spec.x_shape), 8)
        ...         return nn.Sequential(nn.Flatten(), linear, nn.BatchNorm1d(8), nn.ReLU())
        >>> spec = TaskSpec("classification", x_shape=(1, 4, 4), outputs=5, shape=TaskShape(5, 1, 15))
        >>> OneLayer(Options()).build(spec)(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 8])
    """

    def __init__(self, config: Any) -> None: ...

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a new module with all its parameters.

        Any module with native torch layers will do. `Model` makes it a pure function and replaces its norm layers.
        Draw initial weights from torch's default generator: MetaForge seeds it before this call and restores it after.

        Args:
            spec: Specification of the tasks.

        Returns:
            A module that maps inputs `[n, *x_shape]` to features `[n, ...]`.
        """
        ...


class ContextBackbone(Backbone, Protocol):
    """A backbone whose module can take a context vector, which a learner adapts or computes for each task.

    Its `build` has the parameter `context`, the size of the vector; the class need not inherit from this protocol.

    Args:
        config: The backbone's validated options, an instance of its `Config`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import ContextBackbone, Options, TaskShape, TaskSpec
        >>> class Concatenated(nn.Linear):
        ...     def forward(self, x, context):
        ...         return super().forward(torch.cat([x, context.expand(len(x), -1)], 1))
        >>> class OneLayer(ContextBackbone):
        ...     "One linear layer on the inputs and the context."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def build(self, spec, context=0):
        ...         return Concatenated(*spec.x_shape, 8) if not context else Concatenated(spec.x_shape[0] + context, 8)
        >>> spec = TaskSpec("regression", x_shape=(3,), outputs=1, shape=TaskShape(1, 5, 5))
        >>> OneLayer(Options()).build(spec, context=2)(torch.zeros(4, 3), torch.zeros(2)).shape
        torch.Size([4, 8])
    """

    def build(self, spec: TaskSpec, context: int = 0) -> nn.Module:
        """Return a new module with all its parameters.

        Args:
            spec: Specification of the tasks.
            context: Size of the context vector; 0 for a module of inputs alone.

        Returns:
            A module that maps inputs `[n, *x_shape]`, and a context `[context]` if there is one, to features
            `[n, ...]`. Weights that the context is multiplied by must not start at zero: the context's gradient would
            be zero.
        """
        ...


class PretrainedBackbone(Backbone, Protocol):
    """A backbone that can fetch trained weights; its `Config` inherits from `PretrainedOptions`.

    MetaForge calls `pretrained` once, when a run begins whose options have `pretrained = true`. The weights become
    initial values, as those of a file do: after that the run needs neither the method nor a network connection.

    Args:
        config: The backbone's validated options, an instance of its `Config`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import PretrainedBackbone, PretrainedOptions, TaskShape, TaskSpec
        >>> class Fetching(PretrainedBackbone):
        ...     "A linear layer whose trained weights are ones."
        ...     Config = PretrainedOptions
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def build(self, spec):
        ...         return nn.Linear(*spec.x_shape, 8, bias=False)
        ...     def pretrained(self, spec):
        ...         return {"weight": torch.ones(8, *spec.x_shape)}
        >>> spec = TaskSpec("regression", x_shape=(3,), outputs=1, shape=TaskShape(1, 5, 5))
        >>> backbone = Fetching(PretrainedOptions(pretrained=True))
        >>> backbone.pretrained(spec).keys() == backbone.build(spec).state_dict().keys()
        True
    """

    def pretrained(self, spec: TaskSpec) -> Params:
        """Return the trained weights.

        Args:
            spec: Specification of the tasks.

        Returns:
            A tensor for every entry of `build(spec).state_dict()`. They are read without pickle.

        Raises:
            ConfigError: There are no such weights, or they cannot be fetched.
        """
        ...
