"""LEO: descent through a linear decoder is preconditioned descent, and every network has its meta-gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from metaforge.authoring.functional import split_state
from metaforge.authoring.keys import fold_in, make_key, normal
from metaforge.authoring.kinds import CLASSIFICATION
from metaforge.authoring.protocols import Examples, Params, Parts, Pass, Task
from metaforge.engine.batch import score_tasks
from metaforge_plugins.learners.gradient.leo import LEO, MATRICES, correlation, divergence
from toys import (
    BATCH_POLICIES,
    assert_equal_steps,
    assert_loss_has_its_gradient,
    fresh,
    learner,
    smooth,
    spec,
    step,
    task,
    tasks,
)

KEY = make_key(0)
SIZES = {"latent": 3, "dropout": 0.3, "latent_rate": 0.5, "weight_rate": 0.1, "scale": 2.0, "kl": 0.1}
PENALTIES = {"encoder_penalty": 0.1, "l2": 1e-3, "orthogonality": 0.1}


def built(**options: Any) -> Any:
    """Return a small LEO whose penalties are large enough to matter."""
    backbone = options.pop("backbone", None)
    return learner(LEO, backbone=backbone, **SIZES | PENALTIES | options)


def features(one: Any, values: Params, x: Tensor) -> Tensor:
    """Return the features that LEO sees, computed apart."""
    return one.config.scale * F.normalize(one.model(values, x), dim=-1)


def support_grad(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return ∇_w of the support cross-entropy of logits w·x, summed over three classes, averaged over shots."""
    return 3 * grad(lambda w: F.cross_entropy(x @ w.T, y))(weights)


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_finite_differences(norm: str) -> None:
    # The distance between code and adapted code holds the latter constant, so its gradient is no full derivative.
    assert_loss_has_its_gradient(built(backbone=smooth("batch"), norm=norm, steps=2, finetune=2, encoder_penalty=0.0))


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_vectorised_equals_loop(norm: str) -> None:
    one = built(backbone=smooth("batch"), norm=norm, steps=2, finetune=2)
    values, batch = fresh(one), tasks(3)
    looped = step(one, values, batch)
    assert_equal_steps(step(one, values, batch, "vmap"), looped)
    assert_equal_steps(step(one, values, batch, "vmap", chunk=2), looped)
    scores = [score_tasks(one, values, batch, plan=plan, kind=CLASSIFICATION) for plan in ("loop", "vmap")]
    torch.testing.assert_close(scores[0].predictions, scores[1].predictions, rtol=1e-9, atol=1e-9)


def test_a_latent_step_is_preconditioned_descent_on_the_weights() -> None:
    one = built(finetune=0)
    values, support = fresh(one), task().support
    values["leo.latent_rate"] = torch.full_like(values["leo.latent_rate"], 0.7)
    before, after = (one.adapt(values, support, steps=steps)["weights"] for steps in (0, 1))
    x = features(one, values, support.x)
    decoder = values["leo.decoder"][:, : x.shape[1]]
    torch.testing.assert_close(after, before - 0.7 * support_grad(before, x, support.y) @ decoder.T @ decoder)


def test_with_the_identity_as_decoder_it_is_descent_on_a_linear_head() -> None:
    one = built(latent=4, finetune=0, steps=3)
    values, support = fresh(one), task().support
    values["leo.decoder"] = torch.cat([torch.eye(4), torch.zeros(4, 4)], 1).double()
    x = features(one, values, support.x)
    weights = one.encode(values, x, support.y, None)[0]
    for _ in range(3):
        weights = weights - values["leo.latent_rate"] * support_grad(weights, x, support.y)
    torch.testing.assert_close(one.adapt(values, support)["weights"], weights)


def test_of_zero_steps_it_is_the_amortised_classifier() -> None:
    one = built()
    values, example = fresh(one), task()
    x = features(one, values, example.support.x)
    codes, _ = one.encode(values, x, example.support.y, None)
    mean = (codes @ values["leo.decoder"])[:, : x.shape[1]]
    logits = one.predict(values, one.adapt(values, example.support, steps=0), example.query.x)
    torch.testing.assert_close(logits, features(one, values, example.query.x) @ mean.T)
    assert not torch.allclose(logits, one.predict(values, one.adapt(values, example.support), example.query.x))


def test_fine_tuning_descends_on_the_decoded_weights() -> None:
    values, support = fresh(built()), task().support
    decoded = built(finetune=0).adapt(values, support)["weights"]
    one = built(finetune=1)
    x = features(one, values, support.x)
    expected = decoded - values["leo.weight_rate"] * support_grad(decoded, x, support.y)
    torch.testing.assert_close(one.adapt(values, support)["weights"], expected)


def test_relation_net_sees_every_ordered_pair_and_pairs_of_an_example_with_itself() -> None:
    one = built()
    values, support = fresh(one), task().support
    x = features(one, values, support.x)
    codes, by_class = x @ values["leo.encoder"], torch.zeros(3, 6, dtype=torch.float64)
    for i, label in enumerate(support.y.tolist()):
        for j in range(len(codes)):
            hidden = torch.cat([codes[i], codes[j]])
            for name in MATRICES[1:3]:
                hidden = (hidden @ values[name]).relu()
            by_class[label] += hidden @ values["leo.relation.2"] / len(codes) / 2
    mean, log_std = one.encode(values, x, support.y, None)
    torch.testing.assert_close(mean, by_class[:, :3])
    torch.testing.assert_close(log_std.exp(), one.config.code_std * by_class[:, 3:].exp())


def test_divergence_from_a_standard_normal() -> None:
    zero = torch.zeros(2, 3, dtype=torch.float64)
    assert divergence(zero, zero) == 0
    mean, log_std = zero + 0.3, zero - 0.4
    code, prior = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.Normal(zero, zero + 1)
    torch.testing.assert_close(divergence(mean, log_std), torch.distributions.kl_divergence(code, prior).mean())


def test_correlation_is_zero_for_orthogonal_rows_of_any_length() -> None:
    assert correlation(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, -2.0]])) == 0
    torch.testing.assert_close(correlation(torch.ones(2, 3)), torch.tensor(0.5))


def test_permuting_the_classes_permutes_the_codes() -> None:
    one = built()
    values, example, order = fresh(one), task(), torch.tensor([2, 0, 1])
    relabelled = Examples(example.support.x, order[example.support.y])
    x = features(one, values, example.support.x)
    for plain, permuted in zip(
        one.encode(values, x, example.support.y, None), one.encode(values, x, relabelled.y, None), strict=True
    ):
        torch.testing.assert_close(permuted, plain[order.argsort()])
    weights = one.adapt(values, example.support)["weights"]
    torch.testing.assert_close(one.adapt(values, relabelled)["weights"], weights[order.argsort()])


def test_every_network_has_a_meta_gradient() -> None:
    one = built(l2=0.0, orthogonality=0.0, kl=0.0, encoder_penalty=0.0)
    values = fresh(one)
    grads = grad(lambda v: one.loss(v, task(), KEY)[0])(values)
    assert all(grads[name].any() for name in values), "the codes must not be cut from the graph"


def test_the_loss_is_that_of_the_queries_and_each_penalty_by_its_weight() -> None:
    off = dict.fromkeys(("kl", *PENALTIES), 0.0)

    def of(**penalties: float) -> Any:
        return built(backbone=smooth("batch"), norm="support", **off | penalties)

    plain, example = of(), task()
    values, (support, query, _) = fresh(plain), example
    logits = plain.predict(values, plain.adapt(values, support, key=KEY), query.x, key=KEY)
    base = plain.loss(values, example, KEY)[0]
    torch.testing.assert_close(base, F.cross_entropy(logits, query.y))
    x = plain.embed(values, support.x, Pass(KEY, 0, "support"))
    mean, log_std = plain.encode(values, x, support.y, KEY)
    code = torch.distributions.Normal(mean, log_std.exp())
    codes = mean + log_std.exp() * normal(fold_in(KEY, "sample"), mean.shape, mean.dtype)
    adapted = plain.descend(values, codes, Examples(x, support.y), None, KEY)[1]
    rows = values["leo.decoder"]
    cosine = rows @ rows.T / torch.outer(rows.norm(dim=1), rows.norm(dim=1))
    terms = {
        "kl": torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).mean(),
        "encoder_penalty": ((adapted - codes) ** 2).mean(),
        "l2": sum((values[name] ** 2).sum() for name in MATRICES),
        "orthogonality": ((cosine - torch.eye(len(rows))) ** 2).mean(),
    }
    assert terms.keys() == off.keys()
    for name, term in terms.items():
        assert term > 1e-6
        difference = of(**{name: 0.7}).loss(values, example, KEY)[0] - base
        torch.testing.assert_close(difference, 0.7 * term, rtol=1e-7, atol=0.0)


def test_the_encoder_penalty_holds_the_adapted_code_constant() -> None:
    free, held = built(encoder_penalty=0.0), built(encoder_penalty=1.0)
    values, example = fresh(free), task()
    assert held.loss(values, example, KEY)[0] > free.loss(values, example, KEY)[0]
    rates, encoders = zip(
        *(
            (grads["leo.latent_rate"], grads["leo.encoder"])
            for grads in (grad(lambda v, one=one: one.loss(v, example, KEY)[0])(values) for one in (free, held))
        ),
        strict=True,
    )
    torch.testing.assert_close(rates[0], rates[1])
    assert not torch.allclose(encoders[0], encoders[1])


def test_a_fixed_backbone_receives_no_gradient() -> None:
    one = built(train_backbone=False, backbone=smooth("batch"))
    params, state = split_state(fresh(one))
    grads = grad(lambda v: one.loss(v | state, task(), KEY)[0])(params)
    for name, value in grads.items():
        assert bool(value.any()) is name.startswith("leo."), name


def test_noise_in_training_and_none_in_evaluation() -> None:
    one = built()
    values, support = fresh(one), task().support
    drawn = [one.adapt(values, support, key=make_key(i))["weights"] for i in (1, 2, 1)]
    assert not torch.allclose(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(one.adapt(values, support)["weights"], one.adapt(values, support)["weights"])


@pytest.mark.parametrize("norm", BATCH_POLICIES)
def test_whether_a_query_depends_on_the_others_is_as_declared(norm: str) -> None:
    one = built(backbone=smooth("batch"), norm=norm)
    values, example = fresh(one), task()
    fast = one.adapt(values, example.support)
    whole, alone = one.predict(values, fast, example.query.x), one.predict(values, fast, example.query.x[:1])
    assert one.norm == norm
    assert one.transductive is (norm == "transductive")
    assert torch.allclose(whole[:1], alone, rtol=1e-9) is not one.transductive


def test_the_decoders_deviation_starts_as_the_authors_choose() -> None:
    one = built()
    values, zero = fresh(one), torch.zeros(2000, 3, dtype=torch.float64)
    assert abs(one.decode(values, zero, KEY).std() - (2 / (4 + 3)) ** 0.5) < 0.02
    assert not one.decode(values, zero, None).any()


def test_any_number_of_ways_shares_the_values() -> None:
    wide = LEO(LEO.Config(**SIZES), Parts(spec(ways=5), smooth()))
    values, example = fresh(built()), task(0, ways=5)
    assert wide.predict(values, wide.adapt(values, example.support), example.query.x).shape == (15, 5)
    assert not LEO.tags.fixed_ways


def test_images_that_light_no_feature_do_no_harm() -> None:
    one = learner(LEO, backbone=lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU()), **SIZES)
    values = fresh(one)
    values["model.0.bias"] = values["model.0.bias"] - 100
    example: Task = task()
    assert all(g.isfinite().all() for g in grad(lambda v: one.loss(v, example, KEY)[0])(values).values())
