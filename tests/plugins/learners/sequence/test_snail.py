"""SNAIL: causality, what the temporal convolutions reach, and the numbers of torch's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metaforge.authoring.keys import fold_in, make_key, permutation
from metaforge.authoring.protocols import Examples, Params, Parts, TaskShape, TaskSpec
from metaforge_plugins.learners.sequence.snail import SNAIL, Attention, DenseBlock
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    double,
    fresh,
    learner,
    smooth,
    step,
    task,
    tasks,
)

KEY = make_key(0)
SIZES = {"length": 7, "filters": 3, "keys": (4, 3, 5), "outputs": (2, 3, 4)}


def built(backbone: Any = None, **options: Any) -> Any:
    """Return a small SNAIL."""
    return learner(SNAIL, backbone=backbone, **SIZES | options)


def sequence(n: int, channels: int = 4) -> Tensor:
    """Return a random sequence `[n, channels]`."""
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def weights(layer: Any) -> Params:
    """Return the initial weights of a layer in float64, larger than they are."""
    return {name: 2 * value for name, value in double(layer.init(KEY)).items()}


LAYERS = {
    "dilation-1": DenseBlock("layer", 4, 3, 1),
    "dilation-4": DenseBlock("layer", 4, 3, 4),
    "attention": Attention("layer", 4, 5, 3),
}
every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


@every_layer
def test_a_later_element_does_not_change_earlier_outputs(layer: Any) -> None:
    values, x = weights(layer), sequence(9)
    before = layer.read(values, x)[1]
    for t in range(9):
        changed = x.clone()
        changed[t] += 1
        after = layer.read(values, changed)[1]
        assert torch.equal(after[:t], before[:t])
        assert not torch.isclose(after[t], before[t]).any()
        gradient = torch.func.grad(lambda s, t=t: layer.read(values, s)[1][t].square().sum())(x)
        assert not gradient[t + 1 :].any()
        assert gradient[t].all()


@every_layer
def test_queries_are_the_next_elements_of_sequences_of_their_own(layer: Any) -> None:
    values, x, queries = weights(layer), sequence(6), sequence(3).flip(0)
    for n in (6, 1):
        answers = layer.answer(values, layer.read(values, x[:n])[0], queries)
        for query, answer in zip(queries, answers, strict=True):
            whole = layer.read(values, torch.cat([x[:n], query.unsqueeze(0)]))[1]
            torch.testing.assert_close(answer, whole[-1], rtol=1e-12, atol=1e-14)


def test_the_first_element_attends_to_itself_alone() -> None:
    layer, x = LAYERS["attention"], sequence(5)
    values = weights(layer)
    _, _, value = layer.project(values, x)
    torch.testing.assert_close(layer.read(values, x)[1][0, 4:], value[0])
    ones = values | {"layer.weight": values["layer.weight"].index_fill(0, torch.arange(10, 13), 0.0)}
    ones["layer.bias"] = ones["layer.bias"].index_fill(0, torch.arange(10, 13), 1.0)
    # With values of one, the output is the sum of the weights.
    torch.testing.assert_close(layer.read(ones, x)[1][:, 4:], torch.ones(5, 3).double())


@pytest.mark.parametrize(("length", "first", "reach"), [(7, 1, 8), (26, 1, 32), (2, 1, 2), (7, 2, 15)])
def test_the_reach_of_the_convolutions(length: int, first: int, reach: int) -> None:
    """The last output depends on all of the last 2^⌈log2 T⌉ elements; with dilations of 2, 4, … on every second one."""
    one = built(length=length, first_dilation=first)
    blocks = [layer for layer in one.layers if layer.name.startswith("snail.convolution1")]
    values = double(one.init(KEY))

    def last(x: Tensor) -> Tensor:
        for layer in blocks:
            x = layer.read(values, x)[1]
        return x[-1].square().sum()

    gradient = torch.func.grad(last)(sequence(40, blocks[0].inputs))
    seen = gradient.flip(0).abs().sum(-1) > 0
    assert seen.nonzero().flatten().tolist() == list(range(0, reach, first))


def test_the_channels_are_those_of_the_paper() -> None:
    for ways, length, channels in (
        (5, 6, [69, 101, 485, 613, 997, 1253]),
        (20, 21, [84, 116, 756, 884, 1524, 1780]),
    ):
        spec = TaskSpec("classification", (64,), ways, TaskShape(ways, 1, 1))
        one = SNAIL(
            SNAIL.Config(length=length, filters=128, keys=(64, 256, 512), outputs=(32, 128, 256)),
            Parts(spec, torch.nn.Flatten),
        )
        attentions = [layer for layer in one.layers if isinstance(layer, Attention)]
        found = [count for layer in attentions for count in (layer.inputs, layer.inputs + layer.outputs)]
        assert found == channels
        assert one.init(KEY)["snail.output.weight"].shape == (ways, channels[-1])


def reference(values: Params, layers: list[Any], x: Tensor) -> Tensor:
    """Return the logits of the last element of a whole sequence `[n, features + ways]`, by torch's own functions."""
    h = x
    for layer in layers:
        weight, bias = values[f"{layer.name}.weight"], values[f"{layer.name}.bias"]
        if isinstance(layer, DenseBlock):
            padded = F.pad(h.T.unsqueeze(0), (layer.dilation, 0))
            content, gate = F.conv1d(padded, weight, bias, dilation=layer.dilation)[0].T.chunk(2, -1)
            out = content.tanh() * gate.sigmoid()
        else:
            q, k, v = F.linear(h, weight, bias).split([layer.keys, layer.keys, layer.outputs], -1)
            out = F.scaled_dot_product_attention(*(part.unsqueeze(0) for part in (q, k, v)), is_causal=True)[0]
        h = torch.cat([h, out], -1)
    return F.linear(h[-1], values["snail.output.weight"], values["snail.output.bias"])


def test_logits_and_gradients_are_those_of_torchs_layers() -> None:
    one = built(lambda: torch.nn.Linear(3, 4))
    values, example = fresh(one), task(1)
    order = permutation(fold_in(KEY, "order"), 6)
    assert not torch.equal(order, torch.arange(6))

    def loss(v: Params) -> Tensor:
        support, query = (F.linear(p.x, v["model.weight"], v["model.bias"]) for p in (example.support, example.query))
        labelled = torch.cat([support, F.one_hot(example.support.y, 3).double()], -1)[order]
        streams = [torch.cat([labelled, F.pad(q, (0, 3)).unsqueeze(0)]) for q in query]
        return F.cross_entropy(torch.stack([reference(v, one.layers, s) for s in streams]), example.query.y)

    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    theirs = torch.autograd.grad(loss(leaves), list(leaves.values()))
    found, aux = one.loss(values, example, KEY)
    torch.testing.assert_close(found, loss(values), rtol=1e-12, atol=1e-12)
    ours = torch.func.grad(lambda v: one.loss(v, example, KEY)[0])(values)
    for name, other in zip(leaves, theirs, strict=True):
        torch.testing.assert_close(ours[name], other, rtol=1e-9, atol=1e-12)
    assert set(aux.metrics) == {"score"}


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    assert_loss_has_its_gradient(built(smooth("batch"), norm=norm))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    one = built(smooth("batch"), norm=norm)
    values, batch = fresh(one), tasks(4)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


def test_the_order_is_random_in_training_and_that_of_the_episode_in_evaluation() -> None:
    one = built()
    values, example = fresh(one), task()
    features, y = one.model(values, example.support.x), example.support.y
    order = permutation(fold_in(KEY, "order"), len(y))
    in_training = one.adapt(values, example.support, key=KEY)[0]
    in_evaluation = one.adapt(values, Examples(*(part[order] for part in example.support)))[0]
    for ours, theirs in zip(in_training, in_evaluation, strict=True):
        for one_part, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one_part, other)
    as_given = one.read(values, features, y, None)
    assert not torch.isclose(as_given[0][0], in_training[0][0]).all()
    torch.testing.assert_close(one.adapt(values, example.support)[0][0][0], as_given[0][0])


def test_queries_are_answered_one_by_one_and_without_a_label() -> None:
    one = built()
    values, example = fresh(one), task()
    fast = one.adapt(values, example.support)
    whole = one.predict(values, fast, example.query.x)
    torch.testing.assert_close(one.predict(values, fast, example.query.x[2:3]), whole[2:3])
    assert not one.transductive
    # A label of zeros: the columns of the labels do not matter to queries in the last, linear layer.
    labels = slice(one.model.features, one.model.features + 3)
    changed = values["snail.output.weight"].clone()
    changed[:, labels] += 1
    torch.testing.assert_close(one.predict(values | {"snail.output.weight": changed}, fast, example.query.x), whole)


@pytest.mark.parametrize("shots", [1, 5])
def test_any_number_of_shots_also_more_than_the_convolutions_reach(shots: int) -> None:
    one = built(length=2)
    values, example = fresh(one), task(shots=shots)
    fast = one.adapt(values, example.support)
    assert one.predict(values, fast, example.query.x).shape == (9, 3)
    # The attention reads the first example, which the convolutions do not reach.
    x = example.support.x.clone()
    x[0] += 1
    changed = one.adapt(values, Examples(x, example.support.y))
    assert not torch.isclose(*(one.predict(values, f, example.query.x) for f in (fast, changed))).any()


def test_attention_begins_as_a_softmax_of_similarities() -> None:
    layer = LAYERS["attention"]
    values, x = double(layer.init(KEY)), sequence(5)
    query, key, _ = layer.project(values, x)
    assert torch.equal(query, key)
    assert not values["layer.bias"][:10].any()
    assert 0.9 < values["layer.weight"][:10].abs().max() <= 1.0


def test_a_wrong_label_is_seen() -> None:
    one = built()
    values, example = fresh(one), task()
    plain = one.predict(values, one.adapt(values, example.support), example.query.x)
    relabelled = example.support._replace(y=(example.support.y + 1) % 3)
    assert not torch.isclose(one.predict(values, one.adapt(values, relabelled), example.query.x), plain).any()
