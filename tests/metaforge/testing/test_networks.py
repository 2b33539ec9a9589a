"""The table of a network: equal, refused or different, in each way to compute it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import LAYERS, PATTERNS
from metaforge.authoring import make_key, seeded
from metaforge.testing.networks import TOLERANCE, WAYS, check_network
from plain_networks import Growing

EAGER = [way for way in WAYS if way != "compiled"]
# What is refused, by name: in every way, or by some plans.
REFUSED = {
    *("RReLU", "FractionalMaxPool2d", "InstanceNorm2d(track_running_stats)", "AlphaDropout", "LSTM(dropout)"),
    *("LazyLinear", "spectral norm (parametrizations)", "buffer changed in place", "TorchScript", "noise (uniform_)"),
}
REFUSED_BY_PLANS = {
    # No plan: torch has no second derivative, or `torch.func` does not support it.
    "Hardsigmoid": {"loop", "vmap", "fold"},
    "EmbeddingBag": {"loop", "vmap", "fold"},
    "torch.utils.checkpoint": {"loop", "vmap", "fold"},
    # `vmap` cannot run them.
    **{name: {"vmap", "fold"} for name in ("RNN", "GRU", "LSTM", "LSTM(two layers, both directions)")},
    "branch on .item()": {"vmap", "fold"},
    # Torch's own norm functions give wrong second derivatives under `fold`.
    **{name: {"fold"} for name in ("RMSNorm", "F.batch_norm(training=self.training)", "F.layer_norm")},
    **{name: {"fold"} for name in ("F.instance_norm", "hook on batch norm", "parametrized batch norm")},
    "subclass of batch norm (timm's BatchNormAct2d)": {"fold"},
    "subclass of layer norm (ConvNeXt's LayerNorm2d)": {"fold"},
}
ALL = {**LAYERS, **PATTERNS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ALL)
def test_every_network_of_the_zoo_is_equal_or_refused(name: str) -> None:
    results = {result.way: result for result in check_network(*ALL[name], EAGER)}
    if name in REFUSED:
        assert [(way, one.status) for way, one in results.items()] == [("module", "refused")]
        assert results["module"].message
        return
    refused = {way for way, one in results.items() if one.status == "refused"}
    assert refused == REFUSED_BY_PLANS.get(name, set()), results
    for one in results.values():
        assert one.status == "refused" or (one.status == "equal" and one.difference < TOLERANCE), one
        assert bool(one.message) is (one.status == "refused")


def test_a_network_that_differs_is_found() -> None:
    module, *_ = check_network(lambda: nn.Sequential(nn.Linear(3, 2), Growing()), (3,), ["module", "loop"])
    assert (module.status, module.message) == ("different", "1")
    assert module.difference is not None
    assert module.difference > TOLERANCE


class Steep(nn.Module):
    """Amplifies differences."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e6 * x)


def test_ill_conditioned_numbers_are_judged_by_what_rounding_makes_of_them() -> None:
    # Batch norm, which is replaced, differs from torch's in the last bit; the layer after it amplifies that.
    with seeded(make_key(0)):
        network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), Steep())
    (loop,) = check_network(lambda: network, (3,), ["loop"])
    assert loop.difference is not None
    assert loop.difference > TOLERANCE
    assert loop.status == "equal"
    assert "ill-conditioned" in loop.message
