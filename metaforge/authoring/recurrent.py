"""A long short-term memory cell whose weights are values of a learner, so that it is exact under every plan."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import fold_in, uniform
from metaforge.authoring.protocols import Key, Params


class LSTMCell(NamedTuple):
    """A long short-term memory cell, as `nn.LSTMCell`: a function of its weights, with any number of leading axes.

    `nn.LSTM` cannot be vectorised over tasks by `torch.func.vmap`. This cell can, and its steps are written as a loop.

    Attributes:
        name: The prefix of its weights among the learner's values.
        inputs: Number of input features.
        hidden: Number of features of the hidden state and of the cell state.
        recurrent: Number of features of the recurrent input, by default `hidden`. It is larger if the cell gets more
            than its hidden state from the step before, such as what was read from a memory.
        forget: What is added to the input of the forget gate.

    Example:
        >>> import torch
        >>> from metaforge.authoring import LSTMCell, make_key
        >>> cell = LSTMCell("lstm", inputs=3, hidden=4)
        >>> values = cell.init(make_key(0))
        >>> h, c = torch.zeros(2, 4), torch.zeros(2, 4)
        >>> for x in torch.ones(5, 2, 3):
        ...     h, c = cell(values, x, h, c)
        >>> h.shape
        torch.Size([2, 4])
    """

    name: str
    inputs: int
    hidden: int
    recurrent: int | None = None
    forget: float = 0.0

    def init(self, key: Key) -> Params:
        """Return the weights, uniform in ±1/√hidden as those of `nn.LSTMCell`, under the names of that module.

        `<name>.weight_ih` `[4 * hidden, inputs]`, `<name>.weight_hh` `[4 * hidden, recurrent]`, and one bias
        `<name>.bias` `[4 * hidden]` instead of the sum of two. The rows are those of the input gate, the forget gate,
        the content and the output gate.
        """
        gates, recurrent = 4 * self.hidden, self.hidden if self.recurrent is None else self.recurrent
        shapes = {"weight_ih": (gates, self.inputs), "weight_hh": (gates, recurrent), "bias": (gates,)}
        names = {f"{self.name}.{name}": shape for name, shape in shapes.items()}
        return {name: (2 * uniform(fold_in(key, name), shape) - 1) / self.hidden**0.5 for name, shape in names.items()}

    def __call__(self, values: Params, x: Tensor, recurrent: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden state and the cell state after a step.

        Args:
            values: The learner's values, with those of `init`.
            x: The input `[..., inputs]`.
            recurrent: The hidden state of the step before `[..., hidden]`, or a longer recurrent input.
            c: The cell state of the step before `[..., hidden]`.

        Returns:
            The hidden state and the cell state, each `[..., hidden]`.
        """
        return self.step(values, self.project(values, x), recurrent, c)

    def project(self, values: Params, x: Tensor) -> Tensor:
        """Return what inputs `[..., inputs]` contribute to the gates `[..., 4 * hidden]`."""
        return F.linear(x, values[f"{self.name}.weight_ih"], values[f"{self.name}.bias"])

    def step(self, values: Params, projected: Tensor, recurrent: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden state and the cell state after a step whose input went through `project`."""
        gates = projected + F.linear(recurrent, values[f"{self.name}.weight_hh"])
        admit, keep, content, emit = gates.chunk(4, -1)
        c = (keep + self.forget).sigmoid() * c + admit.sigmoid() * content.tanh()
        return emit.sigmoid() * c.tanh(), c

    def zeros(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden state and the cell state before the first step, with the leading axes of `like`."""
        state = like.new_zeros(*like.shape[:-1], self.hidden)
        return state, state

    def run(self, values: Params, x: Tensor, *, reverse: bool = False) -> Tensor:
        """Return the hidden state after each input of a sequence.

        Args:
            values: The learner's values.
            x: The inputs `[n, ..., inputs]`, along the first axis.
            reverse: Whether the sequence is read from its end.

        Returns:
            The hidden states `[n, ..., hidden]`, each at the place of its input.
        """
        projected = self.project(values, x).unbind()
        h, c = self.zeros(x[0])
        states = []
        for one in reversed(projected) if reverse else projected:
            h, c = self.step(values, one, h, c)
            states.append(h)
        return torch.stack(states[::-1] if reverse else states)
