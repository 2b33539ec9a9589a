"""State entries that tell a plugin where the training stands, and the rule by which a run finds them."""

from __future__ import annotations

import torch

from metaforge.authoring.protocols import SHARE, STATE, STEP, Params

# The names of the entries end in these, whatever prefix an adapter's or a regularizer's entries get.
_STEP_END, _SHARE_END = (name.removeprefix(STATE.rstrip(".")) for name in (STEP, SHARE))


def training_progress() -> Params:
    """Return the state entries that ask a run for the training progress: `STEP` and `SHARE`, both zero.

    A learner, adapter or regularizer adds them to what its `init` returns. The run sets `STEP` to the number of outer
    steps done, and `SHARE` to the fraction of the training done, before every outer step, equally on all ranks. It sets
    every entry whose name ends in `.training.step` or `.training.share`, so that a prefix changes nothing: an adapter
    reads `meta[SHARE]`, and a learner `values[SHARE]`. They are tensors like other state entries: a compiled step
    follows them, a checkpoint keeps them, and evaluation sees those of its checkpoint. `Aux.state` must not change
    them.

    Returns:
        Two scalars by name.

    Example:
        A learning rate that falls to zero during the training:

        >>> from metaforge.authoring import SHARE, Adapter, Options, make_key, training_progress
        >>> class Falling(Adapter):
        ...     "Gradient descent with a learning rate that falls linearly to 0."
        ...     Config = Options
        ...     def __init__(self, config):
        ...         self.config = config
        ...     def init(self, params, key):
        ...         return training_progress()
        ...     def update(self, meta, grads, state, params, step):
        ...         return {name: 0.1 * (1 - meta[SHARE]) * grad for name, grad in grads.items()}, state
        >>> Falling(Options()).init({}, make_key(0))
        {'state.training.step': tensor(0.), 'state.training.share': tensor(0.)}
    """
    return {STEP: torch.zeros(()), SHARE: torch.zeros(())}


def progress_of(values: Params) -> Params:
    """Return the entries `STEP` and `SHARE` of values in which they have a prefix.

    `Regularizer.penalty` needs it, because it gets the values of all plugins.

    Args:
        values: A learner's values. All entries of one kind have the same number, so any of them will do.

    Returns:
        The two scalars, under the names `STEP` and `SHARE`.

    Raises:
        KeyError: No plugin of the run has asked for the training progress.

    Example:
        >>> import torch
        >>> from metaforge.authoring import SHARE, prefixed, progress_of, training_progress
        >>> values = {"w": torch.ones(2)} | prefixed("regularizers.mine", training_progress())
        >>> progress_of(values)[SHARE]
        tensor(0.)
    """
    found = {name[name.rindex(".training.") :]: value for name, value in values.items() if is_progress(name)}
    return {STEP: found[_STEP_END], SHARE: found[_SHARE_END]}


def is_progress(name: str) -> bool:
    """Return whether a state entry of this name is set by the run."""
    return name.startswith(STATE) and name.endswith((_STEP_END, _SHARE_END))


def is_share(name: str) -> bool:
    """Return whether the run sets a state entry of this name to the fraction of the training that is done."""
    return name.startswith(STATE) and name.endswith(_SHARE_END)


def with_progress(values: Params, step: int, share: float) -> Params:
    """Return values whose entries of the training progress are `step` and `share`, whatever prefix they have."""
    numbers = {name: step if name.endswith(_STEP_END) else share for name in values if is_progress(name)}
    return values | {name: torch.full_like(values[name], number) for name, number in numbers.items()}
