"""A configuration with nothing left open: the plugins that a run uses, each with its options, and all other values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from metaforge.config.settings import RunConfig
from metaforge.config.sources import SETS, SINGLES
from metaforge.config.toml_text import annotated_toml, to_toml_values
from metaforge.registry.entry import Entry
from metaforge.registry.loading import plugin_errors


@dataclass(frozen=True)
class Choice:
    """A plugin that a run uses: its entry, its class and its validate options."""

    entry: Entry
    cls: type[Any]
    config: BaseModel

    @property
    def name(self) -> str:
        """The name that means this plugin in a run file."""
        return self.entry.qualified if self.entry.state == "ambiguous" else self.entry.name

    def instantiate(self, *parts: Any, **named: Any) -> Any:
        """Return a new instance, given its options and these arguments; `PluginError` where its own code raises."""
        with plugin_errors(self.entry, "cannot be built", keep_metaforge_errors=True):
            return self.cls(self.config, *parts, **named)


@dataclass(frozen=True)
class Resolved:
    """A configuration with nothing left open; `origins` tells where each value comes from, `notes` what gave way."""

    run: RunConfig
    learner: Choice | None
    dataset: Choice | None
    backbone: Choice | None
    adapters: tuple[Choice, ...] = ()
    regularizers: tuple[Choice, ...] = ()
    hooks: tuple[Choice, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def choices(self) -> tuple[Choice, ...]:
        """Return every plugin of the run."""
        singles = (self.learner, self.dataset, self.backbone)
        return (*(one for one in singles if one is not None), *self.adapters, *self.regularizers, *self.hooks)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a run file nests them, ready for JSON."""
        values = self.run.model_dump(mode="json")
        for key in SINGLES:
            choice: Choice | None = getattr(self, key)
            if choice is not None:
                values[key] = {"name": choice.name, **choice.config.model_dump(mode="json")}
        for key in SETS:
            values[key] = {choice.name: choice.config.model_dump(mode="json") for choice in getattr(self, key)}
        return values

    def to_toml(self) -> str:
        """Return a run file that reproduces this configuration by itself, whatever the defaults become."""
        import tomli_w

        return tomli_w.dumps(to_toml_values(self.to_dict()))

    def to_annotated_toml(self) -> str:
        """Return a run file of one value per line, with the origin of each value as a comment."""
        return annotated_toml(to_toml_values(self.to_dict()), self.origins)
