"""Parameters that a run does not train: their gradient is exactly zero in its first outer steps."""

from __future__ import annotations

from metaforge.authoring.protocols import Params
from metaforge.errors import printable
from metaforge.system.streams import note_stream

# After fewer steps a gradient may be zero because another parameter was still zero, such as the weights of a head.
STEPS = 3
_SHOWN = 5


class UntrainedParameters:
    """Prints a note that names the parameters whose gradient is exactly zero in all of the first outer steps.

    Args:
        learner: What the note calls the learner.
        prints: Whether this process prints; of several, one does.
    """

    def __init__(self, learner: str, *, prints: bool) -> None:
        self._learner, self._prints, self._steps = learner, prints, 0
        self._names: set[str] = set()

    def see(self, grads: Params) -> None:
        """Take the meta-gradient of the next outer step, and print the note if it is due and there is a name.

        Args:
            grads: The meta-gradient.
        """
        if not self._prints or self._steps == STEPS:
            return
        zero = {name for name, grad in grads.items() if grad.numel() and not bool(grad.any())}
        self._names = self._names & zero if self._steps else zero
        self._steps += 1
        if self._steps == STEPS and self._names:
            print(self._note(sorted(self._names)), file=note_stream())

    def _note(self, names: list[str]) -> str:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return printable(
            f"Note: the meta-gradient of {', '.join(names[:_SHOWN])}{more} was exactly zero in {STEPS} outer steps: as"
            f" it is configured, the loss of the {self._learner} does not depend on these values, so they are not"
            " trained. Choose another learner, adapter or regularizer."
        )
