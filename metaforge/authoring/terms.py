"""The terms of a task that a learner with an inner loop gives to regularizers, such as the loss without adaptation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from metaforge.authoring.losses import entropy
from metaforge.authoring.protocols import Kind, Params
from metaforge.errors import ConfigError

_BEFORE = frozenset({"loss_before", "entropy_before"})
_ENTROPIES = frozenset({"entropy_before", "entropy_after"})
INNER_LOOP_TERMS = _BEFORE | _ENTROPIES


def require_entropies(asked: frozenset[str], kind: Kind) -> None:
    """Raise `ConfigError` if regularizers read the entropy of predictions that are no class distributions."""
    if kind != "classification" and (unknown := sorted(asked & _ENTROPIES)):
        raise ConfigError(
            f"A regularizer reads {' and '.join(unknown)}, which predictions have in classification only; these tasks"
            f" are of the kind {kind!r}.",
            where="regularizers",
            remedy="leave the regularizer out, or choose a data set of classification tasks",
        )


def inner_loop_terms(
    asked: frozenset[str],
    before: Callable[[], Tensor],
    after: Tensor,
    y: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> Params:
    """Return the terms of a task that regularizers read.

    Args:
        asked: The names of the terms.
        before: Computes the predictions for the queries `[n, outputs]` without adaptation. It is called only if a term
            needs them, because they cost a forward pass.
        after: The predictions for the queries with the adapted parameters.
        y: The targets of the queries.
        criterion: The task loss of (prediction, target).

    Returns:
        Scalars by name: `loss_before` is the query loss without adaptation; `entropy_before` and `entropy_after` are
        the mean entropies of the class distributions that are predicted for the queries.
    """
    terms: Params = {"entropy_after": entropy(after)} if "entropy_after" in asked else {}
    if asked & _BEFORE:
        prediction = before()
        terms |= {"loss_before": criterion(prediction, y)} if "loss_before" in asked else {}
        terms |= {"entropy_before": entropy(prediction)} if "entropy_before" in asked else {}
    return terms
