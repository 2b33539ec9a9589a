"""A plugin whose module prints and changes global state when it is imported; only a child process imports it."""

from __future__ import annotations

import torch

from metaforge.testing.toy import ToyLearner

print("loading the best plugin in the world")  # noqa: T201
torch.manual_seed(1)
torch.set_default_dtype(torch.float64)


class Loud(ToyLearner):
    """A correct learner in a faulty module."""
