"""LSTM optimizer: an update rule that is learned, in which each weight is the cell of a recurrent network.

Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017 (openreview.net rJY0-Kcll).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from metaforge.authoring import (
    Adapter,
    AdapterTags,
    InnerStep,
    Key,
    Options,
    Params,
    at_least_float32,
    fold_in,
    gradient_features,
    uniform,
)

# The p of the preprocessing: numbers below e^(-p) are scaled, and of larger ones the logarithm is taken.
P = 10.0
Bias = Annotated[float, Field(ge=-50, le=50)]


class LSTMOptimizerOptions(Options):
    """Options of the LSTM optimizer."""

    hidden: int = Field(20, ge=1, le=1024, description="units of the LSTM that reads the gradients and losses")
    forget_bias: tuple[Bias, Bias] = Field(
        (4.0, 5.0), description="range from which the bias of the forget gate is drawn: 4.5 shrinks weights by 1.1 %"
    )
    input_bias: tuple[Bias, Bias] = Field(
        (-5.0, -4.0), description="range from which the bias of the input gate is drawn: -4.5 is the inner rate 0.011"
    )


class LSTMOptimizer(Adapter):
    """Gradient descent whose rate and weight decay, for each weight and step, come from a meta-learned LSTM.

    Departures from the paper:
    - Higher derivatives. In the paper the gradients and losses are constants for the meta-gradient. Here what the LSTM
      reads is a constant; whether the step along the gradient is one too, is the option `adjoint` of the learner.
      `learner.adjoint=first-order` gives the paper's.
    """

    Config = LSTMOptimizerOptions
    reference: ClassVar[str] = "Ravi, Larochelle 2017, openreview.net rJY0-Kcll, equations 3 and 4"
    tags = AdapterTags(detaches=True)

    def __init__(self, config: LSTMOptimizerOptions) -> None:
        self.config = config

    def init(self, params: Params, key: Key) -> Params:
        """Return the weights of the LSTM and of both gates, drawn from U(−0.01, 0.01), and the biases of the gates."""
        hidden, like = self.config.hidden, next(iter(params.values()))

        def drawn(name: str, shape: tuple[int, ...], low: float = -0.01, high: float = 0.01) -> Tensor:
            return (low + (high - low) * uniform(fold_in(key, name), shape, like.dtype)).to(like.device)

        gates = {f"{gate}.weight": drawn(f"{gate}.weight", (hidden + 2,)) for gate in ("forget", "input")}
        return gates | {
            "lstm.weight": drawn("lstm.weight", (4 * hidden, 4 + hidden)),
            "lstm.bias": drawn("lstm.bias", (4 * hidden,)),
            "forget.bias": drawn("forget.bias", (), *self.config.forget_bias),
            "input.bias": drawn("input.bias", (), *self.config.input_bias),
        }

    def start(self, meta: Params, params: Params) -> Params:
        """Return zeros: the state of the LSTM `[coordinates, hidden]`, and the last gates `[coordinates]`."""
        zeros = torch.zeros_like(flat(params))
        lstm = zeros.unsqueeze(-1).expand(-1, self.config.hidden)
        return {"hidden": lstm, "cell": lstm, "forget": zeros, "input": zeros}

    def update(
        self, meta: Params, grads: Params, state: Params, params: Params, step: InnerStep
    ) -> tuple[Params, Params]:
        """Return θ_{t−1} − θ_t = (1 − f) ∘ θ_{t−1} + i ∘ ∇, and the new state; θ_t is the cell state of equation 2."""
        gradient, theta = flat({name: grads[name] for name in params}), flat(params)
        loss = gradient_features(step.loss.detach(), P).expand(len(gradient), -1)
        hidden, cell = self.lstm(meta, torch.cat([gradient_features(gradient.detach(), P), loss], -1), state)

        def gate(name: str) -> Tensor:
            own = torch.stack([theta, state[name]], -1)
            return at_least_float32(torch.cat([hidden, own], -1) @ meta[f"{name}.weight"]) + meta[f"{name}.bias"]

        forget, rate = gate("forget"), gate("input").sigmoid()
        # 1 − σ(x) is σ(−x), which is exact where σ(x) is close to 1.
        update = (-forget).sigmoid() * theta + rate * gradient
        new = {"hidden": hidden, "cell": cell, "forget": forget.sigmoid(), "input": rate}
        pieces = torch.split(update, [value.numel() for value in params.values()])
        return {name: u.reshape(params[name].shape) for name, u in zip(params, pieces, strict=True)}, new

    def lstm(self, meta: Params, x: Tensor, state: Params) -> tuple[Tensor, Tensor]:
        """Return h_t and c_t `[coordinates, hidden]` of the LSTM, whose weights all coordinates share."""
        gates = torch.cat([x, state["hidden"]], -1) @ meta["lstm.weight"].T + meta["lstm.bias"]
        inward, forget, new, outward = gates.chunk(4, -1)
        cell = forget.sigmoid() * state["cell"] + inward.sigmoid() * new.tanh()
        return outward.sigmoid() * cell.tanh(), cell


def flat(params: Params) -> Tensor:
    """Return all coordinates of the parameters in one vector `[coordinates]`."""
    return torch.cat([value.flatten() for value in params.values()])
