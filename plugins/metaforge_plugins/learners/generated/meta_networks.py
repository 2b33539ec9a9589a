"""Meta Networks: weights for each query are generated from the gradients of the support examples.

Munkhdalai, Yu, "Meta Networks", ICML 2017 (arXiv 1703.00837).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from metaforge.authoring import (
    MLP,
    Aux,
    BatchNormPolicy,
    Examples,
    Key,
    LSTMCell,
    Model,
    ModelLearner,
    Options,
    Params,
    Parts,
    Pass,
    Tags,
    Task,
    add_params,
    at_least_float32,
    cross_entropy,
    fold_in,
    gradient,
    gradient_features,
    make_key,
    permutation,
    prefixed,
    score,
    select,
)

# The p of the features of the gradients, and the length below which a vector is not scaled to length one.
P, SHORTEST = 7.0, 1e-5


class MetaNetworksOptions(Options):
    """Options of Meta Networks."""

    units: int = Field(64, ge=1, le=65536, description="units of the hidden layer of both networks")
    samples: int = Field(5, ge=1, le=1000, description="support examples whose gradients d reads, at most all (T)")
    hidden: int = Field(20, ge=1, le=1024, description="units of the LSTM d and of the hidden layers of m")
    margin: float = Field(1.0, gt=0, le=1e4, description="distance of different classes in the contrastive loss")
    second_order: bool = Field(False, description="whether the gradients that d and m read are differentiated")
    norm: BatchNormPolicy = Field("running", description="which statistics batch norm uses for queries")


class MetaNetworks(ModelLearner):
    """Generates weights from loss gradients, and lets each query attend to those of the support examples.

    The base network b classifies, and the network u gives the keys of the attention. Each has slow weights, and fast
    weights in its linear layers: those of u from the LSTM d, those of b, one set for each support example, from m.

    Departures from the paper:
    - Layers with fast weights. In the paper the last three layers of both networks have them; here the hidden linear
      layer of both and the output layer of b. No option changes that.
    - Loss of the representation. The paper takes the cross-entropy where a class has several support examples. Here it
      is the contrastive loss for all tasks: of an example and all others of the support set. No option gives theirs.
    - Examples that d reads. They are drawn for each task in training; in evaluation they are the same for all tasks of
      a size.
    - Network. The paper's have five blocks of 64 filters with pooling and no batch norm (reported); suggested are four
      blocks with batch norm. No option gives theirs.
    - Initial values. Those of the last layers of d and m are a tenth of PyTorch's, so that a training starts close to
      the slow weights. No option changes that.
    - Training. The paper does not state all settings. Suggested are 1,500 steps of Adam with learning rate 3e-3, which
      is lowered by a cosine, on 4 tasks with 5 queries per class.
    - Images of Omniglot. The authors use the split of Vinyals et al. and a random one of 1,200 characters, with rotated
      copies. `dataset.split=random` and `dataset.rotations=all` are the closest.
    """

    Config = MetaNetworksOptions
    reference: ClassVar[str] = "Munkhdalai, Yu 2017, arXiv 1703.00837, algorithm 1"
    tags: Tags = Tags(needs=frozenset({"backbone"}), stochastic=True, exact_meta_gradient=False, varied_shots=True)
    config: MetaNetworksOptions
    defaults: ClassVar = {
        "classification": {
            "train": {"queries": 5, "tasks": 4, "steps": 1500, "lr": 3e-3, "clip": 10.0},
            "schedule": {"name": "cosine"},
            "backbone": {"name": "conv4", "variant": "pool"},
        }
    }

    def __init__(self, config: MetaNetworksOptions, parts: Parts) -> None:
        super().__init__(config, parts, norm=config.norm)
        self.tags = replace(self.tags, exact_meta_gradient=config.second_order)
        self.keys_model = Model.of(parts, norm=config.norm, prefix="keys")
        size, c = self.model.features, config
        self.base, self.key = MLP("base", (size, c.units, self.spec.outputs)), MLP("key", (size, c.units))
        self.d, self.d_out = LSTMCell("d", 2, c.hidden), MLP("d_out", (c.hidden, 1))
        self.m = MLP("m", (2, c.hidden, c.hidden, 1))

    def init(self, key: Key) -> Params:
        """Return the slow weights θ of b and φ of u, and the weights of d and m."""
        values = super().init(key) | self.keys_model.init(fold_in(key, "keys"))
        for part in (self.base, self.key, self.d, self.d_out, self.m):
            values |= part.init(key)
        return values | {name: values[name] / 10 for name in values if name.startswith(("d_out.", "m.2."))}

    def adapt(self, values: Params, support: Examples, *, steps: int | None = None, key: Key | None = None) -> Params:
        """Return φ*, the keys r_i `[n, units]`, and θ*_i of each support example, with a leading axis `[n, ...]`."""
        at = Pass(key, 0, "support")
        base, keys = self.model(values, support.x, at).flatten(1), self.keys_model(values, support.x, at).flatten(1)
        statistics = self.model.statistics(values, support.x, at) | self.keys_model.statistics(values, support.x, at)
        return self.memory(values, base, keys, support.y, key) | statistics

    def predict(self, values: Params, fast: Params, x: Tensor, *, key: Key | None = None) -> Tensor:
        """Return the logits of b with θ and θ* `[n, ways]`."""
        at, current = Pass(key, 0, "query"), values | fast
        base, keys = self.model(current, x, at).flatten(1), self.keys_model(current, x, at).flatten(1)
        return self.classify(values, fast, base, keys)

    def loss(self, values: Params, task: Task, key: Key) -> tuple[Tensor, Aux]:
        """Return the mean cross-entropy of the query set (algorithm 1)."""
        support, query, state = self.model.observe_task(values, task, key)
        support_keys, query_keys, other = self.keys_model.observe_task(values, task, key)
        fast = self.memory(values, support, support_keys, task.support.y, key)
        logits = self.classify(values, fast, query, query_keys)
        accuracy = score("classification", logits, task.query.y).detach()
        return cross_entropy(logits, task.query.y), Aux({"score": accuracy}, add_params(state, other))

    def memory(self, values: Params, base: Tensor, keys: Tensor, y: Tensor, key: Key | None) -> Params:
        """Return what `adapt` returns, for the features `[n, features]` of both networks and the labels `[n]`."""
        count = min(self.config.samples, len(y))
        chosen = permutation(fold_in(make_key(0) if key is None else key, "samples"), len(y))[:count].to(y.device)
        slow = prefixed("key", select(values, "key"))
        # Lines 1 to 5: φ* = d({∇_φ L_i}), the last output of an LSTM for each coordinate.
        grads = self.gradients(lambda at, i: self.contrast(self.key(at, keys), y, i), slow, chosen)
        generated = {name: self.read(values, value) for name, value in grads.items()}
        r = self.represent(values, generated, keys)
        # Lines 6 to 10: θ*_i = m(∇_θ L_i), one for each support example.
        examples, slow = torch.arange(len(y), device=y.device), prefixed("base", select(values, "base"))
        # fmt: off
        grads = self.gradients(lambda at, i: cross_entropy(self.base(at, base[i].unsqueeze(0)), y[i].unsqueeze(0)),
                               slow, examples)
        # fmt: on
        theta = {name: self.m(values, gradient_features(value, P)).squeeze(-1) for name, value in grads.items()}
        return {"r": r} | prefixed("fast", generated | theta)

    def gradients(self, loss: Callable[[Params, Tensor], Tensor], at: Params, examples: Tensor) -> Params:
        """Return the gradient of the loss of each example, given by its index, with a leading axis of examples."""
        kept = self.config.second_order

        def one(index: Tensor) -> Params:
            return gradient(lambda slow: (loss(slow, index), ()), at, differentiable=kept)[0]

        return vmap(one)(examples)

    def contrast(self, r: Tensor, y: Tensor, i: Tensor) -> Tensor:
        """Return the mean contrastive loss of example i and each of the others, for representations `[n, units]`."""
        same, other = (y == y[i]).to(r.dtype), (torch.arange(len(y), device=y.device) != i).to(r.dtype)
        square = (r - r[i]).square().sum(-1)
        # The derivative of the square root has no value at zero.
        apart = (self.config.margin - (square + 1e-12).sqrt()).clamp_min(0).square()
        return (other * (same * square + (1 - same) * apart)).sum() / max(len(y) - 1, 1)

    def read(self, values: Params, grads: Tensor) -> Tensor:
        """Return the last output of d `[...]` after the gradients `[T, ...]`, of which it reads two features each."""
        return self.d_out(values, self.d.run(values, gradient_features(grads, P))[-1]).squeeze(-1)

    def represent(self, values: Params, fast: Params, keys: Tensor) -> Tensor:
        """Return r = u(x; φ, φ*) `[n, units]`, the sum of a layer with slow and one with fast weights."""
        return self.key(values, keys).relu() + self.key(fast, keys).relu()

    def classify(self, values: Params, fast: Params, base: Tensor, keys: Tensor) -> Tensor:
        """Return the logits `[queries, ways]`, where θ* = Σ_i a_i θ*_i for each query (lines 12 to 15).

        A linear layer with the weights Σ_i a_i θ*_i gives Σ_i a_i times the outputs of the layers with θ*_i.
        """
        own = select(fast, "fast")
        r = F.normalize(self.represent(values, own, keys), dim=-1, eps=SHORTEST)
        attention = (r @ F.normalize(fast["r"], dim=-1, eps=SHORTEST).T).softmax(-1)

        def mixed(layer: int, x: Tensor) -> Tensor:
            weight, bias = own[f"base.{layer}.weight"], own[f"base.{layer}.bias"]
            return torch.einsum("qi,qio->qo", attention, torch.einsum("qd,iod->qio", x, weight) + bias)

        h = F.linear(base, values["base.0.weight"], values["base.0.bias"]).relu() + mixed(0, base).relu()
        return at_least_float32(F.linear(h, values["base.1.weight"], values["base.1.bias"]) + mixed(1, h))
