"""Tasks that arrive one after another: which of those seen so far an outer step learns from.

An episode is a pure function of seed, split and number, so the tasks seen after round t are the numbers 0 to t: nothing
of them is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaforge.data.random_numbers import episode_keys, uniforms


def seen_tasks(episodes: range, per_round: int, *, seed: int) -> Sequence[int]:
    """Return the task that each training episode is, drawn uniformly from those that have arrived by its round.

    Task t arrives with round t. The draw is a pure function of the seed and the number of the episode.

    Args:
        episodes: The numbers of the training episodes.
        per_round: Number of training episodes per round.
        seed: Seed of the run.

    Returns:
        The numbers of the tasks `[episodes]`, each 0 to the number of the episode's round.
    """
    random = uniforms(episode_keys(seed, "stream", episodes.start, len(episodes)), 1)[:, 0]
    rounds = np.arange(episodes.start, episodes.stop) // per_round
    # Below 1 even where a product would be rounded up.
    numbers: list[int] = np.minimum(random * (rounds + 1), rounds).astype(np.int64).tolist()
    return numbers
