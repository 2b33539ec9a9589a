"""Noise of torch's functions is drawn from the key of a pass, and is distributed as torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from metaforge.authoring import Model, Pass, make_key
from plain_networks import TRAINING, assert_equal_to_plain, inputs, made


class Noisy(nn.Module):
    """Dropout as functions of torch."""

    def __init__(self, draw: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.linear, self.draw = nn.Linear(3, 400), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self.linear(x), self.training)


def drop_path(x: Tensor, training: bool) -> Tensor:
    return x * x.new_empty(len(x), 1).bernoulli_(0.5).div_(0.5) if training else x


DRAWS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "dropout": lambda x, training: functional.dropout(x, 0.5, training),
    "in place": lambda x, training: functional.dropout(x * 1, 0.5, training, inplace=True),
    "torch.dropout": lambda x, training: torch.dropout(x, 0.5, training),
    "dropout1d": lambda x, training: functional.dropout1d(x.unflatten(1, (40, 10)), 0.5, training),
    "bernoulli_": drop_path,
    "bernoulli": lambda x, training: x * torch.bernoulli(torch.full_like(x, 0.5)) * 2 if training else x,
    "rand_like": lambda x, training: x * (torch.rand_like(x) < 0.5) * 2 if training else x,
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_noise_of_functions_is_drawn_by_the_key(name: str) -> None:
    network, x = made(lambda: Noisy(DRAWS[name])), inputs(64, 3)
    model = Model(lambda: network)
    values = model.init(make_key(0))
    before = torch.random.get_rng_state()
    plain, noisy = model(values, x), model(values, x, TRAINING)
    assert torch.equal(noisy, model(values, x, TRAINING))
    assert not torch.equal(noisy, model(values, x, TRAINING._replace(key=make_key(2))))
    assert not torch.equal(noisy, model(values, x, TRAINING._replace(step=1)))
    assert torch.equal(before, torch.random.get_rng_state())
    kept = noisy != 0
    torch.testing.assert_close(noisy[kept], 2 * plain.reshape(noisy.shape)[kept])
    assert 0.3 < float(kept.double().mean()) < 0.7
    # Each task has noise of its own.
    keys = torch.stack([make_key(1), make_key(5)])
    both = torch.func.vmap(lambda key: model(values, x, Pass(key, 0, "support")))(keys)
    torch.testing.assert_close(both[0], noisy)
    torch.testing.assert_close(both[1], model(values, x, Pass(keys[1], 0, "support")))


class Attention(nn.Module):
    """Self-attention with dropout, as a layer of torch or as its function."""

    def __init__(self, rate: float, *, layer: bool) -> None:
        super().__init__()
        self.rate = rate
        self.attention = nn.MultiheadAttention(4, 2, dropout=rate, batch_first=True) if layer else None

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            out: Tensor = self.attention(x, x, x)[0]
            return out
        rate = self.rate if self.training else 0.0
        return functional.scaled_dot_product_attention(x, x, x, dropout_p=rate, is_causal=True)


@pytest.mark.parametrize("layer", [True, False])
def test_dropout_within_attention_is_drawn_by_the_key(layer: bool) -> None:
    x = inputs(8, 5, 4)
    assert_equal_to_plain(made(lambda: nn.Sequential(nn.Linear(4, 4), Attention(0.0, layer=layer))), x)
    network = made(lambda: nn.Sequential(nn.Linear(4, 4), Attention(0.5, layer=layer)))
    model = Model(lambda: network)
    values = model.init(make_key(0))
    outputs = torch.stack([model(values, x, TRAINING._replace(key=make_key(n))) for n in range(400)])
    assert torch.equal(outputs[1], model(values, x, TRAINING))
    assert not torch.equal(outputs[0], outputs[1])
    # The weights are zeroed after the softmax and scaled, so the mean over masks is the output without dropout.
    spread = outputs.std(0) / len(outputs) ** 0.5
    plain = copy.deepcopy(network).eval()(x).detach()
    assert float(((outputs.mean(0) - plain) / (spread + 1e-12)).abs().mean()) < 1.5
