"""The complete configuration of a run: the plugins that it uses, each with all its options, and all other settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES
from metaforge.config.toml_text import annotated_toml, to_toml_values
from metaforge.registry.entry import Entry
from metaforge.registry.loading import plugin_errors
from metaforge.registry.running import running_errors


@dataclass(frozen=True)
class Choice:
    """A plugin that a run uses: its entry, its class and its validated options."""

    entry: Entry
    cls: type[Any]
    config: BaseModel

    @property
    def name(self) -> str:
        """The name of the plugin in a run file: the qualified name if the bare one is ambiguous."""
        return self.entry.qualified if self.entry.state == "ambiguous" else self.entry.name

    def defaults(self) -> dict[str, Any]:
        """Return the default values of the plugin's options that have one."""
        fields = type(self.config).model_fields.items()
        known = {
            name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()
        }
        dumped: dict[str, Any] = self.config.model_copy(update=known).model_dump(mode="json")
        return {name: dumped[name] for name in known}

    def instantiate(self, *parts: Any, **keywords: Any) -> Any:
        """Return `cls(config, *parts, **keywords)`; raise `PluginError` if the plugin's code raises."""
        with plugin_errors(self.entry, "cannot be built", keep_metaforge_errors=True):
            return self.cls(self.config, *parts, **keywords)

    def options(self) -> dict[str, Any]:
        """Return the options as a run file has them; raise `PluginError` if they cannot be written."""
        with plugin_errors(self.entry, "has options that a run file cannot hold"):
            return self.config.model_dump(mode="json")


@dataclass(frozen=True)
class Resolved:
    """The complete configuration of a run.

    Attributes:
        run: The settings that belong to no plugin.
        learner: The learner; None only if the configuration was resolved without one (`complete=False`).
        dataset: The data set; None only in the same case.
        backbone: The backbone, if the learner needs one.
        optimizer: The outer optimiser; None only if none is chosen and none is the default of the registry.
        schedule: The schedule of its learning rate; None only in the same case.
        adapters: The chain of adapters, in order.
        regularizers: The regularizers, in order.
        hooks: The hook plugins, in order.
        origins: The origin of each value, by dotted path.
        notes: Sentences for the user on explicit options that were dropped.
    """

    run: RunConfig
    learner: Choice | None
    dataset: Choice | None
    backbone: Choice | None
    optimizer: Choice | None = None
    schedule: Choice | None = None
    adapters: tuple[Choice, ...] = ()
    regularizers: tuple[Choice, ...] = ()
    hooks: tuple[Choice, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def choices(self) -> tuple[Choice, ...]:
        """Return every plugin of the run."""
        singles: list[Choice | None] = [getattr(self, key) for key in SINGLES]
        chosen = tuple(choice for choice in singles if choice is not None)
        return (*chosen, *self.adapters, *self.regularizers, *self.hooks)

    def running_errors(
        self, doing: str, when: str = "", *, owner: Choice | None = None, always: bool = True
    ) -> AbstractContextManager[None]:
        """Return a context in which an exception of a plugin of this run becomes a `PluginError` that names it.

        `owner` is the plugin that the block calls, by default the learner; see
        `metaforge.registry.running.running_errors`.
        """
        owner = owner or self.learner
        assert owner is not None, "a configuration without a learner does not run"
        return running_errors(self.choices(), owner, doing, when, always=always)

    def to_dict(self) -> dict[str, Any]:
        """Return the values nested as in a run file, of types that JSON has."""
        values = self.run.model_dump(mode="json")
        for key in SINGLES:
            choice: Choice | None = getattr(self, key)
            if choice is not None:
                values[key] = {"name": choice.name, **choice.options()}
        for key in SETS:
            values[key] = {choice.name: choice.options() for choice in getattr(self, key)}
        return values

    def defaults(self) -> dict[str, Any]:
        """Return the default value of every setting and of every option of the run's plugins, nested as in a run file.

        An option without a default is left out, and so are the `defaults` of plugins.
        """
        values = RunConfig().model_dump(mode="json")
        for key in SINGLES:
            choice: Choice | None = getattr(self, key)
            values[key] = {} if choice is None else choice.defaults()
        for key in SETS:
            values[key] = {choice.name: choice.defaults() for choice in getattr(self, key)}
        return values

    def to_toml(self) -> str:
        """Return a run file with every value, so that it reproduces the run even if defaults change later."""
        import tomli_w

        return tomli_w.dumps(to_toml_values(self.to_dict()))

    def to_annotated_toml(self) -> str:
        """Return a run file with one value per line and the origin of each value as a comment."""
        return annotated_toml(to_toml_values(self.to_dict()), self.origins)
