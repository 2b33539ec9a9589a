"""MANN: a recurrent network with an external memory, from which it reads labels back by similarity.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "One-shot Learning with Memory-Augmented Neural Networks", ICML 2016
(arXiv 1605.06065). A task is one stream: the label of an example is an input together with the next example, and every
example is scored. The docstring of the class lists the departures from the paper, with which it trains in minutes.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import vmap

from metaforge.authoring import (
    Examples,
    Key,
    Options,
    Params,
    Parts,
    Pass,
    StreamLearner,
    Tags,
    fold_in,
    one_hot,
    uniform,
)


class MANNOptions(Options):
    """Options of the memory-augmented network."""

    hidden: int = Field(200, ge=1, le=8192, description="width of the LSTM controller")
    rows: int = Field(128, ge=1, le=65536, description="rows of the memory")
    width: int = Field(40, ge=1, le=8192, description="width of a memory row")
    heads: int = Field(4, ge=1, le=64, description="read heads, each of which also writes one row per step")
    decay: float = Field(0.95, ge=0.0, le=1.0, description="decay γ of the usage at each step; 0.99 in the paper")
    sharpness: float = Field(10.0, gt=0.0, description="factor on the cosines before the softmax; 1 in the paper")

    @model_validator(mode="after")
    def enough_rows(self) -> Self:
        """Raise `ValueError` for fewer rows than heads, because each head writes to a different row."""
        if self.rows < self.heads:
            raise ValueError(f"rows is {self.rows}, but each of the {self.heads} heads writes to a different row")
        return self


class Memory(NamedTuple):
    """The state of a stream after an example.

    Attributes:
        hidden: Hidden state of the LSTM `[hidden]`.
        cell: Cell state of the LSTM `[hidden]`.
        rows: The memory `[rows, width]`.
        read_weights: Weights of the last read `[heads, rows]`.
        read: What was read last, of all heads `[heads * width]`.
        usage: How much each row was used recently `[rows]`.
        label: The label of the last example, one-hot `[ways]`.
    """

    hidden: Tensor
    cell: Tensor
    rows: Tensor
    read_weights: Tensor
    read: Tensor
    usage: Tensor
    label: Tensor


class MANN(StreamLearner):
    """Learns to bind examples to labels in an external memory; only the memory changes at test time.

    With some seeds and settings a training stays at what the labels alone tell (about 30 % of 5 classes) for thousands
    of steps: watch `instance_2`. On standardised features of a trained network it takes some hundreds: see the data set
    `stored-features`.

    Departures from the paper:
    - Writing. In the paper w^lu marks all least-used rows, as many as there are heads, for every head. Here each head
      has one of these rows, as in the port by Tristan Deleu; ties are broken by the order of the rows.
    - Erasing. In the paper the least-used row of the memory is set to zero before a step writes. Here the least-used
      row of every head is: with 4 heads, the 4 least-used rows. No option changes that. So 128 rows last for 32
      examples; a stream of 50 examples needs `learner.rows=200` if no row that is still in use is to be erased.
    - Write vector. In the paper a head writes the key that it reads with. Here it writes a second vector, and both are
      passed through tanh, as in that port.
    - Cosines. In the paper the softmax is of the cosines; here it is of 10 times the cosines. `learner.sharpness=1`
      gives the paper's.
    - Usage. In the paper it decays by 0.99 per step; here by 0.95, as in that port. `learner.decay=0.99` gives the
      paper's.
    - Inputs. In the paper they are the 400 pixels of an image of 20 × 20 pixels; here they are the features of a
      backbone that is trained jointly, with batch norm. `dataset.size=20` gives the size, `backbone.name=mlp` and
      `backbone.widths=[]` give the pixels.
    - Controller. The forget gate of the LSTM has 1 added to its input, which that port does not have.
    - Labels. In the paper they are one-hot for up to 15 classes, or strings of 5 letters; here they are always one-hot.
    - Data. The paper splits the characters of Omniglot at random into 1200 and 423, and augments them by rotations and
      small shifts. By default the data set `omniglot` splits by alphabet, and it has rotations only.
      `dataset.split=random` has 1100, 100 and 423 characters; `dataset.shift=10` and `dataset.tilt=30` move the
      images as in that port.
    - Training. The paper takes 100,000 episodes, reportedly by RMSProp with learning rate 1e-4; suggested are 3,000
      steps of Adam on 16 streams with learning rate 3e-3, lowered by a cosine, and a meta-gradient of norm at most 10.
      `optimizer.name=rmsprop`, `train.lr=0.0001`, `schedule.name=constant` and `train.steps` give the paper's. As in
      the paper, a stream has 10 examples per class.
    - Evaluation. The paper reports the accuracy at the first, second, … example of a class in a stream: the metrics
      `instance_1`, `instance_2`, …. The accuracy of an evaluation is another: the memory reads the support set, and
      each query is scored from it alone, without writing for the next.
    """

    Config = MANNOptions
    reference: ClassVar[str] = "Santoro et al. 2016, arXiv 1605.06065, section 3"
    tags: Tags = Tags(needs=frozenset({"backbone"}), stochastic=True)
    config: MANNOptions
    defaults: ClassVar = {
        "classification": {
            "train": {
                "ways": 5,
                "shots": 1,
                "queries": 9,
                "tasks": 16,
                "steps": 3000,
                "lr": 3e-3,
                "clip": 10.0,
            },
            "schedule": {"name": "cosine"},
            "backbone": {"variant": "stride-flat"},
        }
    }

    def __init__(self, config: MANNOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm="running")
        self.ways, self.features = parts.spec.outputs, self.model.features

    def init(self, key: Key) -> Params:
        """Return the values of the backbone, and the matrices `[inputs, outputs]` and biases of the controller."""
        c = self.config
        read = c.heads * c.width
        shapes = {
            "mann.input": (self.features + self.ways, 4 * c.hidden),
            "mann.recurrent": (c.hidden + read, 4 * c.hidden),
            "mann.interface": (c.hidden, 2 * read + c.heads),
            "mann.output": (c.hidden + read, self.ways),
        }
        values = super().init(key)
        for name, shape in shapes.items():
            values[name] = (2.0 * uniform(fold_in(key, name), shape) - 1.0) * (6.0 / sum(shape)) ** 0.5
        for name in ("mann.input", "mann.interface", "mann.output"):
            values[f"{name}.bias"] = torch.zeros(shapes[name][1])
        return values

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Memory:
        """Return the memory after the support set, in the order of its examples."""
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        return self.run(values, self.empty_memory(features), features, support.y)[0]

    def predict(self, values: Params, fast: Memory, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits `[n, ways]`; each query is scored as if it were the first example after the support set."""
        features = self.model(values, x, Pass(key, 0, "query")).flatten(1)
        return vmap(lambda inputs: self.step(values, fast, inputs)[1])(self.projected(values, features))

    def score_stream(self, values: Params, features: Tensor, y: Tensor) -> Tensor:
        """Return the logits of a stream `[n, ways]`, which starts with an empty memory."""
        return self.run(values, self.empty_memory(features), features, y)[1]

    def empty_memory(self, features: Tensor) -> Memory:
        """Return the memory with which every stream starts: all zeros, with the type and device of `features`."""
        c, zeros = self.config, features.new_zeros
        return Memory(
            zeros(c.hidden), zeros(c.hidden), zeros(c.rows, c.width), zeros(c.heads, c.rows),
            zeros(c.heads * c.width), zeros(c.rows), zeros(self.ways),
        )  # fmt: skip

    def run(self, values: Params, memory: Memory, features: Tensor, y: Tensor) -> tuple[Memory, Tensor]:
        """Return the memory after the examples `[n, features]`, and logits `[n, ways]` computed before the labels."""
        labels = one_hot(y, self.ways, features.dtype)
        logits = []
        for projected, label in zip(self.projected(values, features).unbind(), labels.unbind(), strict=True):
            memory, prediction = self.step(values, memory, projected)
            memory = memory._replace(label=label)
            logits.append(prediction)
        return memory, torch.stack(logits)

    def projected(self, values: Params, features: Tensor) -> Tensor:
        """Return what the features contribute to the gates of the LSTM `[n, 4 * hidden]`."""
        return features @ values["mann.input"][: self.features] + values["mann.input.bias"]

    def step(self, values: Params, memory: Memory, projected: Tensor) -> tuple[Memory, Tensor]:
        """Return the memory after one example, and its logits `[ways]`; the label is stored by the caller."""
        hidden, cell = self.controller(values, memory, projected)
        interface = hidden @ values["mann.interface"] + values["mann.interface.bias"]
        c = self.config
        keys, adds, gate = interface.tensor_split([c.heads * c.width, 2 * c.heads * c.width])
        least = least_used(memory.usage, c.heads)
        writes = write_weights(gate.sigmoid(), memory.read_weights, least)
        rows = memory.rows * (1.0 - least.sum(0)).unsqueeze(-1) + writes.T @ adds.tanh().reshape(c.heads, c.width)
        reads = (c.sharpness * cosines(keys.tanh().reshape(c.heads, c.width), rows)).softmax(-1)
        read = (reads @ rows).flatten()
        usage = next_usage(memory.usage, reads, writes, c.decay)
        logits = torch.cat([hidden, read]) @ values["mann.output"] + values["mann.output.bias"]
        return Memory(hidden, cell, rows, reads, read, usage, memory.label), logits

    def controller(self, values: Params, memory: Memory, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden and cell state of the LSTM `[hidden]`, from the example, the last label and the last read."""
        gates = projected + memory.label @ values["mann.input"][self.features :]
        gates = gates + torch.cat([memory.hidden, memory.read]) @ values["mann.recurrent"]
        admit, keep, emit, content = gates.chunk(4)
        cell = (keep + 1.0).sigmoid() * memory.cell + admit.sigmoid() * content.tanh()
        return emit.sigmoid() * cell.tanh(), cell


def least_used(usage: Tensor, heads: int) -> Tensor:
    """Return w^lu `[heads, rows]`: one-hot on the least-used rows, ties broken by index; without a gradient."""
    return one_hot(usage.detach().argsort(stable=True)[:heads], usage.shape[0], usage.dtype)


def write_weights(gate: Tensor, read_weights: Tensor, least: Tensor) -> Tensor:
    """Return w^w = σ(a) w^r + (1 − σ(a)) w^lu `[heads, rows]`, with w^r and w^lu of the last step (equation 7)."""
    return gate.unsqueeze(-1) * read_weights + (1.0 - gate.unsqueeze(-1)) * least


def next_usage(usage: Tensor, reads: Tensor, writes: Tensor, decay: float) -> Tensor:
    """Return w^u = γ w^u + Σ w^r + Σ w^w `[rows]` (equation 5)."""
    return decay * usage + reads.sum(0) + writes.sum(0)


def cosines(keys: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine similarity of each key and each memory row `[heads, rows]` (equation 2)."""
    lengths = (keys.square().sum(-1, keepdim=True) + 1e-8).sqrt() * (rows.square().sum(-1) + 1e-8).sqrt()
    return keys @ rows.T / lengths
