"""The keys that evaluation passes to a learner, and the check that its predictions have the right shape."""

from __future__ import annotations

from torch import Tensor

from metaforge.authoring.keys import fold_in
from metaforge.authoring.kinds import TaskKind
from metaforge.authoring.protocols import Learner
from metaforge.errors import PluginError


def evaluation_keys(kind: TaskKind, key: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the keys that evaluation passes to `adapt` and to `predict`: two of the task's key, or None for both.

    Args:
        kind: The kind of the task.
        key: The key of the task; None only if the kind needs none.
    """
    if key is None or not kind.needs_key:
        return None, None
    return fold_in(key, "adapt"), fold_in(key, "predict")


def require_prediction(learner: Learner, prediction: object, queries: int, outputs: int) -> None:
    """Raise `PluginError`, which names the learner, unless a prediction for one task is a tensor `[queries, outputs]`.

    With another shape a score would be computed all the same, because tensors are broadcast, and it would be wrong.

    Args:
        learner: The learner, for the message.
        prediction: What its `predict` returned.
        queries: The number of queries of the task.
        outputs: The number of predictions per query.
    """
    if isinstance(prediction, Tensor) and prediction.shape == (queries, outputs):
        return
    cls = type(learner)
    result = f"shape {list(prediction.shape)}" if isinstance(prediction, Tensor) else f"a {type(prediction).__name__}"
    raise PluginError(
        f"The learner {cls.__name__} predicts {result} for {queries} queries and {outputs} outputs per query; its"
        f" predict must return a tensor of shape {[queries, outputs]}.",
        where=f"{cls.__module__}:{cls.__qualname__}",
        remedy="its author can find such errors with `metaforge check`",
    )
