"""A plugin whose module does what no import may: no test imports it, only an interpreter of its own."""

from __future__ import annotations

import torch

from metaforge.testing.toy import ToyLearner

print("loading the best plugin in the world")  # noqa: T201
torch.manual_seed(1)
torch.set_default_dtype(torch.float64)


class Loud(ToyLearner):
    """Learns quietly enough; its module is the fault."""
