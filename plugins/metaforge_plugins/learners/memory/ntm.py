"""Neural Turing machine: a controller with an external memory that it addresses by content and by location.

Graves, Wayne, Danihelka, "Neural Turing Machines", 2014 (arXiv 1410.5401).
"""

from __future__ import annotations

from math import log
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from metaforge.authoring import (
    MLP,
    Aux,
    Examples,
    Key,
    LSTMCell,
    Options,
    Params,
    Parts,
    Pass,
    StreamLearner,
    Tags,
    Task,
    binary_cross_entropy,
    label_accuracy,
    one_hot,
)


class NTMOptions(Options):
    """Options of the neural Turing machine."""

    controller: Literal["lstm", "feed-forward"] = Field("lstm", description="network that controls the heads")
    hidden: int = Field(100, ge=1, le=8192, description="width of the controller")
    rows: int = Field(128, ge=1, le=65536, description="rows of the memory (N)")
    width: int = Field(20, ge=1, le=8192, description="width of a memory row (M)")
    heads: int = Field(1, ge=1, le=64, description="read heads, and as many write heads")
    strength: float = Field(10.0, ge=0, le=100, description="what is added to the input of the key strength β")
    shifts: int = Field(1, ge=0, le=100, description="rows by which a head can move per step, in either direction")


class Address(NamedTuple):
    """What heads emit for their addressing.

    Attributes:
        key: Key vector k `[heads, width]`.
        strength: Key strength β ≥ 0 `[heads]`.
        gate: Interpolation gate g in (0, 1) `[heads]`.
        shift: Weights s of the shifts −n, …, n, which sum to one `[heads, 2n + 1]`.
        sharpness: Exponent γ ≥ 1 `[heads]`.
    """

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift: Tensor
    sharpness: Tensor


class Memory(NamedTuple):
    """The state of a sequence after an example.

    Attributes:
        hidden: Hidden state of the controller `[hidden]`.
        cell: Cell state of an LSTM controller `[hidden]`; zeros for another one.
        rows: The memory `[rows, width]`.
        reads: Weights of the read heads `[heads, rows]`.
        writes: Weights of the write heads `[heads, rows]`.
        read: What was read last, of all heads `[heads * width]`.
        label: The label of the last example `[outputs]`.
    """

    hidden: Tensor
    cell: Tensor
    rows: Tensor
    reads: Tensor
    writes: Tensor
    read: Tensor
    label: Tensor


class NTM(StreamLearner):
    """Learns to write examples to an external memory and to read them back, by content or one after the other.

    In classification a task is one stream of all examples in random order, as in MANN: the label of an example is an
    input together with the next example, every example is scored, and `instance_1`, `instance_2`, … are the accuracy at
    the first, second, … example of a class. In an evaluation the memory reads the support set in the order of the
    episode, and each query is scored from it alone, without writing for the next.

    Where examples have several labels, as in the data set `copy`, a task is a sequence in time: the last entry of an
    input is its time, which the network does not see. The support examples are read and the queries are answered in the
    order of their times, each query with the memory that the one before has left. The queries alone are scored.

    Departures from the paper:
    - What it leaves open. Write heads are first in a step. Every row of the memory begins as 1e-6, after Collier and
      Beel 2018 (arXiv 1807.08518), all heads begin at the first row, and the controller begins with zeros.
    - Key strength. In classification 10 is added to the input of its softplus: a softmax of cosines alone is almost
      uniform, so that a head finds nothing at first. `learner.strength=0` adds nothing.
    - Controller. It is an LSTM with 1 added to the input of its forget gate, or one layer of tanh units, which is
      suggested where examples have several labels: it learns to copy in fewer steps.
    - Labels. The label of an example is an input together with the next one, also in the copy task, where the paper
      has none. No option changes that.
    - Training. The authors take RMSProp with momentum 0.9, and clip each entry of the gradient to [−10, 10]; suggested
      is Adam with a cosine. `optimizer.name=rmsprop`, `optimizer.momentum=0.9`, `schedule.name=constant` and
      `train.clip_value=10` give theirs; a port (loudinthecloud/pytorch-ntm) has `train.lr=0.0001`.
    """

    Config = NTMOptions
    reference: ClassVar[str] = "Graves et al. 2014, arXiv 1410.5401, section 3"
    tags: Tags = Tags(
        kinds=frozenset({"classification", "multi-label"}), needs=frozenset({"backbone"}), stochastic=True
    )
    config: NTMOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 5, "shots": 1, "queries": 9, "tasks": 16, "steps": 3000, "lr": 3e-3, "clip": 10.0},
            "schedule": {"name": "cosine"},
            "backbone": {"variant": "stride-flat"},
        },
        "multi-label": {
            "learner": {"controller": "feed-forward", "strength": 0.0},
            "train": {"tasks": 16, "steps": 6000, "lr": 3e-3, "clip": 10.0},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "mlp", "widths": []},
        },
    }

    def __init__(self, config: NTMOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")
        # Where examples have several labels, their order is part of the task, and queries are answered one by one.
        self.timed, self.outputs = not parts.spec.kind.classes, parts.spec.outputs
        self.transductive = self.timed or self.model.transductive
        inputs, self.read_size = self.model.features + self.outputs, config.heads * config.width
        self.cell = LSTMCell("ntm.lstm", inputs, config.hidden, recurrent=config.hidden + self.read_size, forget=1.0)
        self.inputs = MLP("ntm.inputs", (inputs, config.hidden))
        self.feedback = MLP("ntm.feedback", (self.read_size, config.hidden))
        self.address_size = config.width + 2 * config.shifts + 4
        self.interface = MLP("ntm.interface", (config.hidden, 2 * config.heads * (self.address_size + config.width)))
        self.output = MLP("ntm.output", (config.hidden + self.read_size, self.outputs))

    def init(self, key: Key) -> Params:
        """Return the values of the backbone, of the controller, of its heads and of the linear output."""
        lstm = self.config.controller == "lstm"
        controller = self.cell.init(key) if lstm else self.inputs.init(key) | self.feedback.init(key)
        return super().init(key) | controller | self.interface.init(key) | self.output.init(key)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Memory:
        """Return the memory after the support set, in the order of its examples, or of their times."""
        x, order = self.ordered(support.x)
        features = self.model(values, x, Pass(key, 0, "support")).flatten(1)
        return self.run(values, self.empty_memory(features), features[order], support.y[order])[0]

    def predict(self, values: Params, fast: Memory, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits `[n, outputs]`: each query comes first after the support set, or all in the order of times."""
        x, order = self.ordered(x)
        features = self.model(values, x, Pass(key, 0, "query")).flatten(1)
        if self.timed:
            return self.run(values, fast, features[order])[1][order.argsort()]
        label = fast.label.expand(len(x), -1)
        return vmap(lambda inputs: self.step(values, fast, inputs)[1])(self.projected(values, features, label))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy over a stream of all examples in random order, or over the queries in order."""
        if not self.timed:
            return super().loss(values, task, key)
        logits, y, state = self.answers(values, task, key)
        return binary_cross_entropy(logits, y), Aux({"score": label_accuracy(logits, y).detach()}, state)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the accuracy at the first, second, … example of a class, or wrong bits and cost of a sequence."""
        if not self.timed:
            return super().measure(values, task, key)
        logits, y, _ = self.answers(values, task, None)
        cost = binary_cross_entropy(logits, y) * (y.numel() / log(2))
        return {"wrong_bits": (1 - label_accuracy(logits, y)) * y.numel(), "cost_in_bits": cost}

    def score_stream(self, values: Params, features: Tensor, y: Tensor) -> Tensor:
        """Return the logits of a stream `[n, ways]`, which starts with an empty memory."""
        return self.run(values, self.empty_memory(features), features, y)[1]

    def answers(self, values: Params, task: Task, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return logits `[n, outputs]` and labels of the queries in the order of time, and the changes of the state."""
        (x, first), (asked, then) = self.ordered(task.support.x), self.ordered(task.query.x)
        task = task._replace(support=task.support._replace(x=x), query=task.query._replace(x=asked))
        support, query, state = self.model.observe_task(values, task, key)
        memory = self.run(values, self.empty_memory(support), support[first], task.support.y[first])[0]
        return self.run(values, memory, query[then])[1], task.query.y[then], state

    def ordered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and the order in which they are read `[n]`; times become zero, for the network not to see."""
        if not self.timed:
            return x, torch.arange(len(x), device=x.device)
        flat = x.flatten(1)
        return F.pad(flat[:, :-1], (0, 1)).reshape(x.shape), flat[:, -1].argsort(stable=True)

    def empty_memory(self, features: Tensor) -> Memory:
        """Return the memory with which every stream starts: small constants, and all heads at the first row."""
        c, zeros = self.config, features.new_zeros
        start = one_hot(torch.zeros(c.heads, dtype=torch.int64, device=features.device), c.rows, features.dtype)
        rows = features.new_full((c.rows, c.width), 1e-6)
        return Memory(zeros(c.hidden), zeros(c.hidden), rows, start, start, zeros(self.read_size), zeros(self.outputs))

    def run(self, values: Params, memory: Memory, features: Tensor, y: Tensor | None = None) -> tuple[Memory, Tensor]:
        """Return the memory after the examples `[n, features]`, and logits `[n, outputs]` from before the labels.

        Without labels, as those of queries are, zeros become known in their place.
        """
        labels = features.new_zeros(len(features), self.outputs) if y is None else y
        if y is not None and not self.timed:
            labels = one_hot(y, self.outputs, features.dtype)
        known = torch.cat([memory.label.unsqueeze(0), labels[:-1]])
        logits = []
        for projected in self.projected(values, features, known).unbind():
            memory, prediction = self.step(values, memory, projected)
            logits.append(prediction)
        return memory._replace(label=labels[-1]), torch.stack(logits)

    def projected(self, values: Params, features: Tensor, labels: Tensor) -> Tensor:
        """Return what features and the labels known with them contribute to the controller."""
        inputs = torch.cat([features, labels], -1)
        return self.cell.project(values, inputs) if self.config.controller == "lstm" else self.inputs(values, inputs)

    def step(self, values: Params, memory: Memory, projected: Tensor) -> tuple[Memory, Tensor]:
        """Return the memory after one example, and its logits `[outputs]`: write heads are first, then read heads."""
        c, cell = self.config, memory.cell
        if c.controller == "lstm":
            hidden, cell = self.cell.step(values, projected, torch.cat([memory.hidden, memory.read]), cell)
        else:
            hidden = (projected + self.feedback(values, memory.read)).tanh()
        interface = self.interface(values, hidden)
        addresses, erase, add = interface.tensor_split([2 * c.heads * self.address_size, -c.heads * c.width])
        reading, writing = addresses.reshape(2, c.heads, -1).unbind()
        writes = move(self.address(writing), memory.rows, memory.writes)
        rows = write(memory.rows, writes, erase.reshape(c.heads, -1).sigmoid(), add.reshape(c.heads, -1))
        reads = move(self.address(reading), rows, memory.reads)
        read = (reads @ rows).flatten()
        logits = self.output(values, torch.cat([hidden, read]))
        return Memory(hidden, cell, rows, reads, writes, read, memory.label), logits

    def address(self, x: Tensor) -> Address:
        """Return what heads emit, from the outputs of the controller for them `[heads, address_size]`."""
        width = self.config.width
        key, scalars, shift = x.tensor_split([width, width + 3], -1)
        strength, gate, sharpness = scalars.unbind(-1)
        strength = F.softplus(self.config.strength + strength)
        return Address(key, strength, gate.sigmoid(), shift.softmax(-1), 1 + F.softplus(sharpness))


def move(address: Address, rows: Tensor, previous: Tensor) -> Tensor:
    """Return the weights w_t `[heads, rows]`, from those of the step before (equations 5 to 9)."""
    content = (address.strength.unsqueeze(-1) * cosines(address.key, rows)).softmax(-1)
    gate = address.gate.unsqueeze(-1)
    return sharpened(shifted(gate * content + (1 - gate) * previous, address.shift), address.sharpness)


def cosines(keys: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine similarity of each key and each memory row `[heads, rows]` (equation 6)."""
    lengths = (keys.square().sum(-1, keepdim=True) + 1e-16).sqrt() * (rows.square().sum(-1) + 1e-16).sqrt()
    return keys @ rows.T / lengths


def shifted(weights: Tensor, shift: Tensor) -> Tensor:
    """Return the circular convolution of weights `[heads, rows]` with the shifts −n, …, n (equation 8)."""
    reach = shift.shape[-1] // 2
    moved = [weights.roll(i - reach, -1) * shift[..., i : i + 1] for i in range(shift.shape[-1])]
    return torch.stack(moved).sum(0)


def sharpened(weights: Tensor, sharpness: Tensor) -> Tensor:
    """Return w^γ / Σ w^γ `[heads, rows]` (equation 9), by logarithms, because powers of small weights underflow."""
    return (sharpness.unsqueeze(-1) * (weights + 1e-16).log()).softmax(-1)


def write(rows: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return the memory after all heads, with weights `[heads, rows]`, have erased, then added (equations 3 and 4)."""
    kept = (1 - weights.unsqueeze(-1) * erase.unsqueeze(-2)).prod(0)
    return rows * kept + weights.T @ add
