"""Which values of a network an inner loop adapts, and choices of them with which nothing would be learned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metaforge.authoring.functional import matching
from metaforge.authoring.model import Model
from metaforge.errors import ConfigError, shown


def adapted_names(
    model: Model, adapt: str | Sequence[str], frozen: Sequence[str], *, optional: bool = False
) -> tuple[str, ...]:
    """Return the names of the values that the option `adapt` chooses and that are not frozen.

    Args:
        model: The network.
        adapt: The option, see `Model.choose`.
        frozen: Patterns of the names of frozen values.
        optional: Whether there may be none, because the inner loop adapts something else.

    Raises:
        ConfigError: There is none.
    """
    chosen = model.choose(adapt)
    adapted = tuple(name for name in chosen if name not in matching(chosen, frozen))
    if adapted or optional:
        return adapted
    if chosen:
        raise ConfigError(
            "Every value that the inner loop would adapt is frozen.",
            where="train.freeze",
            remedy="freeze less, such as the body of the network without its head",
        )
    raise ConfigError(
        f"There is nothing to adapt: the network has no value that adapt={shown(adapt)} stands for.",
        where="learner.adapt",
        remedy="adapt all, or give patterns of names of values",
    )


def require_dependence(trained: Iterable[str], adapted: Iterable[str]) -> None:
    """Raise `ConfigError` if the inner loop adapts all values that are trained, under `implicit` and no proximal term.

    A minimum of the support loss does not depend on where the loop starts: the meta-gradient would be exactly zero.

    Args:
        trained: Names of the learner's values that are trained.
        adapted: Names of the parameters that the inner loop adapts.
    """
    if not set(trained) - set(adapted):
        raise ConfigError(
            "With adjoint=implicit and proximal=0 the inner loop adapts every value that is trained, so its minimum"
            " depends on none of them, and the meta-gradient is zero.",
            where="learner.proximal",
            remedy="set learner.proximal above 0, or adapt a part of the network, such as learner.adapt=head",
        )
