"""What every plugin has, whatever its kind, and the protocol of hook plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Base class of every plugin's `Config`: a pydantic model that is frozen and rejects unknown options.

    Attributes:
        after_colon: The option that is set where the plugin is chosen as `name:value`, as in `--backbone net:deep`; by
            default there is none. A run has one learner, data set, backbone, outer optimiser and schedule: these can
            be chosen so.

    Raises:
        pydantic.ValidationError: An option is unknown, has the wrong type, is out of bounds or is not finite.

    Example:
        >>> from pydantic import Field
        >>> from metaforge.authoring import Options
        >>> class DecayOptions(Options):
        ...     rate: float = Field(0.1, ge=0, le=1, description="decay per step")
        >>> DecayOptions(rate=0.5)
        DecayOptions(rate=0.5)
        >>> DecayOptions(raet=0.5)
        Traceback (most recent call last):
            ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for DecayOptions...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    after_colon: ClassVar[str] = ""


class Component(Protocol):
    """What every plugin has: a docstring and three class attributes.

    The first line of the docstring is the summary that `metaforge list-plugins` prints.

    Attributes:
        Config: The plugin's options, a subclass of `Options`.
        reference: The paper that the plugin follows, with section or equation; empty if there is none.
        defaults: Settings that suit the plugin, by the name of a kind of task, nested as in a run file. They override
            MetaForge's own defaults, and the user's settings override them.

    Example:
        >>> from metaforge.authoring import Component, Options
        >>> class Idle(Component):
        ...     "A plugin that does nothing."
        ...     Config = Options
        ...     reference = ""
        ...     defaults = {"regression": {"train": {"lr": 1e-3}}}
        >>> Idle.defaults["regression"]["train"]
        {'lr': 0.001}
    """

    Config: ClassVar[type[Options]]
    reference: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


class Preset(Component, Protocol):
    """Settings of a run under a name, such as the protocol of a paper; a run can have several.

    They are above the defaults of plugins, and the user's settings are above them. A setting that does not fit the run,
    such as an option of an adapter for a learner that uses none, is dropped. Of several presets the last applies.

    Attributes:
        settings: The settings, nested as in a run file.

    Example:
        >>> from metaforge.authoring import Preset
        >>> class Quick(Preset):
        ...     "A training of 100 steps on few tasks."
        ...     settings = {"train": {"steps": 100, "tasks": 4}}
        >>> Quick.settings["train"]["steps"]
        100
    """

    Config: ClassVar[type[Options]] = Options
    settings: ClassVar[Mapping[str, Any]] = {}


class Hook(Component, Protocol):
    """A hook plugin: a class with some of the methods of `metaforge.authoring.hooks.Specs`.

    Each of them is marked with `metaforge.hookimpl` and takes the arguments that it needs.

    Args:
        config: The plugin's validated options, an instance of its `Config`.

    Example:
        >>> from metaforge import hookimpl
        >>> from metaforge.authoring import Hook, Options
        >>> class PrintLoss(Hook):
        ...     "Prints the loss of every outer step."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     @hookimpl
        ...     def metaforge_after_step(self, step, metrics):
        ...         print(f"step {step}: loss {metrics['loss']:.2f}")
        >>> PrintLoss(Options()).metaforge_after_step(1, {"loss": 0.5})
        step 1: loss 0.50
    """

    def __init__(self, config: Any) -> None: ...
