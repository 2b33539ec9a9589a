"""The groups of parameters of the outer optimiser: which parameters have settings of their own, by name pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metaforge.authoring.functional import matching
from metaforge.config.paths import joined
from metaforge.config.settings import GroupConfig, TrainConfig
from metaforge.errors import ConfigError

# The most names that an error message lists.
_MOST_NAMES = 20


class ParameterGroup(NamedTuple):
    """Parameters that share their settings in the outer optimiser.

    Attributes:
        names: The names of the parameters.
        lr: The learning rate, before the factor of the schedule.
        weight_decay: The weight decay.
        min: The lower bound after each step; None for no bound.
        max: The upper bound after each step; None for no bound.
    """

    names: tuple[str, ...]
    lr: float
    weight_decay: float
    min: float | None = None
    max: float | None = None


def parameter_groups(
    config: TrainConfig, names: Sequence[str], weight_decay: float, frozen: Sequence[str] = ()
) -> list[ParameterGroup]:
    """Return the groups of the parameters: those without a pattern first, then one for each of `train.groups`.

    Args:
        config: The settings of the outer loop.
        names: The names of all parameters.
        weight_decay: The optimiser's own weight decay, if the settings have none.
        frozen: The names of the values that nothing changes.

    Raises:
        ConfigError: A pattern applies to no parameter.
    """
    pattern_of = {name: _pattern_of(name, config) for name in names}
    groups = []
    for pattern, own in [(None, GroupConfig()), *config.groups.items()]:
        members = tuple(name for name in names if pattern_of[name] == pattern)
        if pattern is not None and not members:
            raise _applies_to_none(pattern, names, frozen)
        if members:
            decay = next((d for d in (own.weight_decay, config.weight_decay) if d is not None), weight_decay)
            lr = config.lr if own.lr is None else own.lr
            groups.append(ParameterGroup(members, lr, decay, own.min, own.max))
    return groups


def _pattern_of(name: str, config: TrainConfig) -> str | None:
    """Return the last pattern of `train.groups` that matches a name, or None if none does."""
    return next((pattern for pattern in reversed(config.groups) if matching([name], [pattern])), None)


def _applies_to_none(pattern: str, names: Sequence[str], frozen: Sequence[str]) -> ConfigError:
    what = "no parameter has such a name"
    if matching(names, [pattern]):
        what = "later patterns match all of its parameters too"
    elif matching(frozen, [pattern]):
        what = "all that it matches is frozen"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ConfigError(
        f"The pattern {pattern!r} applies to nothing: {what}.",
        where=joined(("train", "groups", pattern)),
        remedy=f"the parameters of this learner are {', '.join(names[:_MOST_NAMES]) or 'none'}{more}; of several"
        " patterns that match, the last applies",
    )
