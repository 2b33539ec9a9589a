"""SNAIL: temporal convolutions and causal attention over the support examples, followed by a query.

Mishra, Rohaninejad, Chen, Abbeel, "A Simple Neural Attentive Meta-Learner", ICLR 2018 (arXiv 1707.03141).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring import (
    Aux,
    BatchNormPolicy,
    Examples,
    Key,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    cross_entropy,
    fold_in,
    initial_linear,
    one_hot,
    permutation,
    score,
)

Width = Annotated[int, Field(ge=1, le=8192)]
# What a layer keeps of a sequence for the queries that follow it.
Memory = tuple[Tensor, ...]
# What all layers keep, and the statistics of batch norm.
Adapted = tuple[tuple[Memory, ...], Params]


class SNAILOptions(Options):
    """Options of SNAIL."""

    length: int = Field(
        26, ge=2, le=65536, description="elements that a temporal convolution reaches (T): support examples and query"
    )
    filters: Width = Field(32, description="filters of each dense block")
    keys: tuple[Width, Width, Width] = Field((64, 64, 64), description="width of the keys of each attention")
    outputs: tuple[Width, Width, Width] = Field((32, 32, 32), description="width of the values of each attention")
    first_dilation: Literal[1, 2] = Field(1, description="dilation of the first dense block; 2 in the paper's text")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class DenseBlock(NamedTuple):
    """A causal convolution with kernel 2, whose gated output is appended to its input.

    Attributes:
        name: The prefix of its weights among the learner's values.
        inputs: Number of input channels.
        outputs: Number of output channels.
        dilation: Distance of the two elements that an output depends on.
    """

    name: str
    inputs: int
    outputs: int
    dilation: int

    def init(self, key: Key) -> Params:
        """Return a weight `[2 * outputs, inputs, 2]` as that of `nn.Conv1d`, first for tanh, then for the sigmoid."""
        return initial_linear(self.name, (2 * self.outputs, self.inputs, 2), key)

    def read(self, values: Params, x: Tensor) -> tuple[Memory, Tensor]:
        """Return what a following query needs, and the output `[n, inputs + outputs]` for a sequence `[n, inputs]`."""
        padded = F.pad(x, (0, 0, self.dilation, 0))
        return (padded[len(x)],), self.gated(values, padded[: len(x)], x)

    def answer(self, values: Params, memory: Memory, x: Tensor) -> Tensor:
        """Return the output `[m, inputs + outputs]` for queries `[m, inputs]`, each the next after the sequence."""
        return self.gated(values, memory[0].expand_as(x), x)

    def gated(self, values: Params, before: Tensor, x: Tensor) -> Tensor:
        """Return `x` with tanh(·) σ(·) of the convolution appended; `before` is `dilation` elements earlier."""
        weight = values[f"{self.name}.weight"]
        content, gate = F.linear(torch.cat([before, x], -1), torch.cat(weight.unbind(-1), -1)).chunk(2, -1)
        content_bias, gate_bias = values[f"{self.name}.bias"].chunk(2)
        return torch.cat([x, (content + content_bias).tanh() * (gate + gate_bias).sigmoid()], -1)


class Attention(NamedTuple):
    """Causal attention with one head, whose output is appended to its input.

    Attributes:
        name: The prefix of its weights among the learner's values.
        inputs: Number of input channels.
        keys: Width of keys and queries.
        outputs: Width of values.
    """

    name: str
    inputs: int
    keys: int
    outputs: int

    def init(self, key: Key) -> Params:
        """Return the weights of queries, keys and values, below each other `[2 * keys + outputs, inputs]`.

        Queries and keys have equal weights, twice as large as those of `nn.Linear`, and no bias: attention begins as a
        softmax of similarities.
        """
        both = 2 * initial_linear(self.name, (self.keys, self.inputs), fold_in(key, "keys"))[f"{self.name}.weight"]
        values = initial_linear(self.name, (self.outputs, self.inputs), key)
        return {
            f"{self.name}.weight": torch.cat([both, both, values[f"{self.name}.weight"]]),
            f"{self.name}.bias": F.pad(values[f"{self.name}.bias"], (2 * self.keys, 0)),
        }

    def read(self, values: Params, x: Tensor) -> tuple[Memory, Tensor]:
        """Return keys and values, and the output `[n, inputs + outputs]` for a sequence `[n, inputs]`."""
        query, key, value = self.project(values, x)
        later = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).triu(1)
        weights = (query @ key.T / self.keys**0.5).masked_fill(later, -torch.inf).softmax(-1)
        return (key, value), torch.cat([x, weights @ value], -1)

    def answer(self, values: Params, memory: Memory, x: Tensor) -> Tensor:
        """Return the output `[m, inputs + outputs]` for queries `[m, inputs]`, each attending to itself too."""
        query, key, value = self.project(values, x)
        scores = torch.cat([query @ memory[0].T, (query * key).sum(-1, keepdim=True)], -1)
        weights = (scores / self.keys**0.5).softmax(-1)
        return torch.cat([x, weights[:, :-1] @ memory[1] + weights[:, -1:] * value], -1)

    def project(self, values: Params, x: Tensor) -> tuple[Tensor, ...]:
        """Return the query, the key and the value of each element."""
        projected = F.linear(x, values[f"{self.name}.weight"], values[f"{self.name}.bias"])
        return projected.tensor_split([self.keys, 2 * self.keys], -1)


class SNAIL(ModelLearner):
    """Reads the support examples as a sequence, by convolutions and attention, and labels the query that follows them.

    Every query is the last element of a sequence of its own. Because nothing in a sequence depends on what comes later,
    the support examples are computed once for all queries of a task. Sequences may have any length: beyond
    `learner.length` the convolutions do not reach the first elements, which the attention still does.

    Departures from the paper:
    - Order. As in the paper the support examples have a random order in training. In evaluation it is that of the
      episode, which predictions depend on; the data sets of MetaForge return the examples class by class.
    - Dilations. In the paper's text they are 2, 4, …, so that a convolution reaches every second element only. Here
      they are 1, 2, 4, …; `learner.first_dilation=2` gives those of the text.
    - Sizes. Suggested are 32 filters per dense block, and keys of 64 and values of 32 entries in all attentions.
      `learner.filters=128`, `learner.keys=[64, 256, 512]` and `learner.outputs=[32, 128, 256]` give the paper's. There
      the convolutions are built for one length, NK + 1; `learner.length=6` gives that of 5 ways and 1 shot.
    - Initial values. In the paper they are not stated. Here queries and keys of an attention start equal, so that it
      begins by attending to similar elements, which shortens the training. No option changes that.
    - Training on Omniglot. The authors draw 1 to 5 shots per task; suggested is 1 shot, and 5 queries per class.
      `train.shots=[1, 2, 3, 4, 5]` draws the number for every outer step. The learning rate and the number of steps
      are not stated; suggested are 3,000 steps of Adam with learning rate 1e-3, lowered by a cosine.
    - Images of Omniglot. The authors train on 1,200 random characters, with rotated copies as classes. By default the
      data set `omniglot` splits by alphabet, with rotated copies in training only. `dataset.split=random` and
      `dataset.rotations=all` give theirs, with 1,100 characters for training.
    """

    Config = SNAILOptions
    reference: ClassVar[str] = "Mishra et al. 2018, arXiv 1707.03141, section 3 and figure 2"
    tags: Tags = Tags(needs=frozenset({"backbone"}), stochastic=True, varied_shots=True)
    config: SNAILOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"ways": 5, "queries": 5, "tasks": 8, "steps": 3000, "lr": 1e-3},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool-32"},
        }
    }

    def __init__(self, config: SNAILOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.ways, self.layers = parts.spec.outputs, list[DenseBlock | Attention]()
        channels = self.model.features + self.ways
        for i, (keys, outputs) in enumerate(zip(config.keys, config.outputs, strict=True)):
            if i > 0:
                for block in range((config.length - 1).bit_length()):
                    dilation = config.first_dilation * 2**block
                    self.layers.append(DenseBlock(f"snail.convolution{i}.{block}", channels, config.filters, dilation))
                    channels += config.filters
            self.layers.append(Attention(f"snail.attention{i}", channels, keys, outputs))
            channels += outputs
        self.channels = channels

    def init(self, key: Key) -> Params:
        """Return the values of the backbone, of all layers and of the linear output."""
        values = super().init(key)
        for layer in self.layers:
            values |= layer.init(key)
        return values | initial_linear("snail.output", (self.ways, self.channels), key)

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Adapted:
        """Return what each layer keeps of the support examples, in their order."""
        at = Pass(key, 0, "support")
        features = self.model(values, support.x, at).flatten(1)
        return self.read(values, features, support.y, key), self.model.statistics(values, support.x, at)

    def predict(self, values: Params, fast: Adapted, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return logits `[n, ways]`; each query is the last element of a sequence of its own."""
        features = self.model(values | fast[1], x, Pass(key, 0, "query")).flatten(1)
        return self.answer(values, fast[0], features)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy of the queries, with the support examples in random order."""
        support, query, state = self.model.observe_task(values, task, key)
        logits = self.answer(values, self.read(values, support, task.support.y, key), query)
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, state)

    def read(self, values: Params, features: Tensor, y: Tensor, key: Key | None) -> tuple[Memory, ...]:
        """Return what each layer keeps of a sequence of examples, which has a random order if there is a key."""
        x = torch.cat([features, one_hot(y, self.ways, features.dtype)], -1)
        if key is not None:
            x = x[permutation(fold_in(key, "order"), len(x))]
        memories = []
        for layer in self.layers:
            memory, x = layer.read(values, x)
            memories.append(memory)
        return tuple(memories)

    def answer(self, values: Params, memories: tuple[Memory, ...], features: Tensor) -> Tensor:
        """Return logits `[m, ways]` for the features of queries `[m, features]`, which have a label of zeros."""
        x = F.pad(features, (0, self.ways))
        for layer, memory in zip(self.layers, memories, strict=True):
            x = layer.answer(values, memory, x)
        return F.linear(x, values["snail.output.weight"], values["snail.output.bias"])
