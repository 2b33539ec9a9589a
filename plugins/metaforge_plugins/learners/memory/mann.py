"""MANN: a recurrent network that writes what it sees and its late label into a memory, and reads it back by similarity.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "One-shot Learning with Memory-Augmented Neural Networks", ICML 2016
(arXiv 1605.06065). A task is one stream: each example's label arrives with the next one, and every example is scored.
Departures from the paper, which let it learn in minutes: a backbone in place of flat pixels, a factor on the cosines, a
write vector of its own beside the key (both through tanh, as in a public port), a forget-gate bias of +1, and Adam.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.func import vmap

from metaforge.authoring import (
    Aux,
    Examples,
    Key,
    Learner,
    Model,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    cross_entropy,
    feature_size,
    fold_in,
    make_key,
    one_hot,
    permutation,
    seeded,
    uniform,
)


class MANNOptions(Options):
    """Options of the memory-augmented network."""

    hidden: int = Field(200, ge=1, le=8192, description="width of the LSTM controller")
    rows: int = Field(128, ge=1, le=65536, description="rows of the memory")
    width: int = Field(40, ge=1, le=8192, description="width of a memory row")
    heads: int = Field(4, ge=1, le=64, description="read heads, each with a write of its own")
    decay: float = Field(0.95, ge=0.0, le=1.0, description="factor γ of usage at each step; 0.99 in the paper")
    sharpness: float = Field(10.0, gt=0.0, description="factor on the cosines before the softmax; 1 in the paper")

    @model_validator(mode="after")
    def enough_rows(self) -> Self:
        """Refuse fewer rows than heads: each head writes to a least-used row of its own."""
        if self.rows < self.heads:
            raise ValueError(f"rows is {self.rows}, but each of the {self.heads} heads writes to a row of its own")
        return self


class Memory(NamedTuple):
    """What is carried along a stream: LSTM state, memory, weights of the last read, what it read, usage, last label."""

    hidden: Tensor
    cell: Tensor
    rows: Tensor
    read_weights: Tensor
    read: Tensor
    usage: Tensor
    label: Tensor


class MANN(Learner):
    """Learns to bind examples to labels in an external memory; nothing but the memory changes at test time."""

    Config = MANNOptions
    reference: ClassVar[str] = "Santoro et al. 2016, arXiv 1605.06065, section 3"
    tags: ClassVar[Tags] = Tags(needs=frozenset({"backbone"}), stochastic=True)
    defaults: ClassVar = {
        "classification": {
            "train": {
                "ways": 5,
                "shots": 1,
                "queries": 9,
                "tasks": 16,
                "steps": 3000,
                "schedule": "cosine",
                "lr": 3e-3,
                "clip": 10.0,
            },
            "backbone": {"variant": "stride-flat"},
        }
    }

    def __init__(self, config: MANNOptions, parts: Parts) -> None:
        assert parts.backbone is not None
        self.config, self.ways = config, parts.spec.outputs
        self.model = Model.of(parts, norm="running")
        with seeded(make_key(0, "structure")):
            self.features = feature_size(parts.backbone(), parts.spec.x_shape)
        self.norm, self.transductive = self.model.norm, self.model.transductive

    def init(self, key: Key) -> Params:
        """Return the embedding's values and the controller's matrices `[inputs, outputs]`."""
        c = self.config
        read = c.heads * c.width
        shapes = {
            "mann.input": (self.features + self.ways, 4 * c.hidden),
            "mann.recurrent": (c.hidden + read, 4 * c.hidden),
            "mann.interface": (c.hidden, 2 * read + c.heads),
            "mann.output": (c.hidden + read, self.ways),
        }
        values = self.model.init(fold_in(key, "model"))
        for name, shape in shapes.items():
            values[name] = (2.0 * uniform(fold_in(key, name), shape) - 1.0) * (6.0 / sum(shape)) ** 0.5
        for name in ("mann.input", "mann.interface", "mann.output"):
            values[f"{name}.bias"] = torch.zeros(shapes[name][1])
        return values

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Memory:
        """Return the memory after the supports, in the order given."""
        features = self.model(values, support.x, Pass(key, 0, "support")).flatten(1)
        return self.run(values, self.wiped(features), features, support.y)[0]

    def predict(self, values: Params, fast: Memory, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits `[n, ways]`, each query as the one example that follows the supports."""
        features = self.model(values, x, Pass(key, 0, "query")).flatten(1)
        return vmap(lambda one: self.step(values, fast, one)[1])(self.projected(values, features))

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy over the stream of all examples in a random order."""
        logits, y, state = self.stream(values, task, key, key)
        figures = {"score": accurate(logits, y).mean()} | by_instance(accurate(logits, y), y, self.ways)
        return cross_entropy(logits, y), Aux(figures, state)

    def measure(self, values: Params, task: Task, key: Key) -> Params:
        """Return the accuracy at each presentation of a class, over the stream of all examples in a random order."""
        logits, y, _ = self.stream(values, task, key, None)
        return by_instance(accurate(logits, y), y, self.ways)

    def stream(self, values: Params, task: Task, order: Key, key: Key | None) -> tuple[Tensor, Tensor, Params]:
        """Return (logits `[n, ways]`, labels `[n]`, state change) of all examples as one stream in random order."""
        x, y = (torch.cat(pair) for pair in zip(task.support, task.query, strict=True))
        features, state = self.model.observe(values, x, Pass(key, 0, "query"))
        places = permutation(fold_in(order, "order"), len(y))
        features, y = features.flatten(1)[places], y[places]
        return self.run(values, self.wiped(features), features, y)[1], y, state

    def wiped(self, features: Tensor) -> Memory:
        """Return the empty memory with which every stream starts."""
        c, zeros = self.config, features.new_zeros
        return Memory(
            zeros(c.hidden), zeros(c.hidden), zeros(c.rows, c.width), zeros(c.heads, c.rows),
            zeros(c.heads * c.width), zeros(c.rows), zeros(self.ways),
        )  # fmt: skip

    def run(self, values: Params, memory: Memory, features: Tensor, y: Tensor) -> tuple[Memory, Tensor]:
        """Return the memory after the examples `[n, features]`, and the logits `[n, ways]` made before labels came."""
        labels = one_hot(y, self.ways, features.dtype)
        logits = []
        for projected, label in zip(self.projected(values, features).unbind(), labels.unbind(), strict=True):
            memory, prediction = self.step(values, memory, projected)
            memory = memory._replace(label=label)
            logits.append(prediction)
        return memory, torch.stack(logits)

    def projected(self, values: Params, features: Tensor) -> Tensor:
        """Return the examples' share of the LSTM's gates `[n, 4 * hidden]`."""
        return features @ values["mann.input"][: self.features] + values["mann.input.bias"]

    def step(self, values: Params, memory: Memory, projected: Tensor) -> tuple[Memory, Tensor]:
        """Return the memory after one example and its logits `[ways]`; its own label comes with the next example."""
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
        """Return the LSTM's (hidden, cell) `[hidden]` for the example, the last label and what was last read."""
        gates = projected + memory.label @ values["mann.input"][self.features :]
        gates = gates + torch.cat([memory.hidden, memory.read]) @ values["mann.recurrent"]
        admit, keep, emit, content = gates.chunk(4)
        cell = (keep + 1.0).sigmoid() * memory.cell + admit.sigmoid() * content.tanh()
        return emit.sigmoid() * cell.tanh(), cell


def least_used(usage: Tensor, heads: int) -> Tensor:
    """Return w^lu `[heads, rows]`, one-hot on the least-used rows, ties by index; no gradient passes."""
    return one_hot(usage.detach().argsort(stable=True)[:heads], usage.shape[0], usage.dtype)


def write_weights(gate: Tensor, read_weights: Tensor, least: Tensor) -> Tensor:
    """Return w^w = σ(a) w^r + (1 − σ(a)) w^lu `[heads, rows]` of the step before (equation 7)."""
    return gate.unsqueeze(-1) * read_weights + (1.0 - gate.unsqueeze(-1)) * least


def next_usage(usage: Tensor, reads: Tensor, writes: Tensor, decay: float) -> Tensor:
    """Return w^u = γ w^u + Σ w^r + Σ w^w `[rows]` (equation 5)."""
    return decay * usage + reads.sum(0) + writes.sum(0)


def cosines(keys: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine of each key with each memory row `[heads, rows]` (equation 2)."""
    lengths = (keys.square().sum(-1, keepdim=True) + 1e-8).sqrt() * (rows.square().sum(-1) + 1e-8).sqrt()
    return keys @ rows.T / lengths


def accurate(logits: Tensor, y: Tensor) -> Tensor:
    """Return 1 where the prediction is right, else 0, `[n]`."""
    return (logits.detach().argmax(-1) == y).to(logits.dtype)


def by_instance(correct: Tensor, y: Tensor, ways: int) -> Params:
    """Return the accuracy at the first, second, … presentation of a class in the stream."""
    same = (y.unsqueeze(0) == y.unsqueeze(1)).to(correct.dtype)
    instance = same.tril().sum(1)
    figures = {}
    for k in range(1, len(y) // ways + 1):
        chosen = (instance == k).to(correct.dtype)
        figures[f"instance_{k}"] = (chosen * correct).sum() / chosen.sum().clamp_min(1.0)
    return figures
