"""The context that the layers of one model share during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from metaforge.authoring.protocols import NormPolicy, Params, Pass


class ForwardContext:
    """What the norm layers, dropout layers and regularizer taps of one model share during a forward pass.

    The `forward` of an `nn.Module` receives its inputs alone. Its layers read everything else from this object, and
    batch norm stores here what the caller of the model needs after the pass.

    Attributes:
        policy: Which statistics batch norm uses.
        prefix: The prefix of the names of the model's values.
        frozen: Patterns of the names of values that nothing changes.
        at: The pass that is running: its key, inner step, role (support or query) and draw.
        values: The learner's values, by their full names: batch norm reads its statistics (`state.…`), and the taps of
            regularizers read what they meta-learn.
        support_statistics: Under the policy `support`, mean and variance of the inputs at each use of batch norm.
        state_changes: Under `running` and `per-step`, what to add to each `state.` entry after a training pass.
    """

    def __init__(self, policy: NormPolicy, prefix: str = "model", frozen: Sequence[str] = ()) -> None:
        self.policy, self.prefix, self.frozen = policy, prefix, tuple(frozen)
        self.at = Pass()
        self.values: Params = {}
        self.support_statistics: Params = {}
        self.state_changes: Params = {}
        self._uses: dict[str, int] = {}

    @contextmanager
    def forward_pass(self, at: Pass, values: Params) -> Iterator[None]:
        """Hold the context of one forward pass; it is cleared when the pass ends or raises an error."""
        self.at, self.values = at, values
        try:
            yield
        finally:
            self.at, self.values = Pass(), {}
            self.support_statistics, self.state_changes, self._uses = {}, {}, {}

    def use(self, layer: str) -> int:
        """Return how often a layer has been used in this pass, and count one more use."""
        number = self._uses.get(layer, 0)
        self._uses[layer] = number + 1
        return number
