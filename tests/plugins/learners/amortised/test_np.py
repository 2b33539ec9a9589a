"""Neural process: what its decoder reads, the symmetries of its context, and its likelihood below the exact one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import vmap

from metaforge.authoring.keys import make_key
from metaforge.authoring.kinds import REGRESSION
from metaforge.authoring.protocols import Examples, Parts, Task, TaskShape
from metaforge.engine.batch import score_tasks
from metaforge_plugins.datasets.gaussian_process import GaussianProcess
from metaforge_plugins.learners.amortised.np import NP
from toys import assert_equal_steps, assert_true_gradient, fresh, keys, learner, step, task, tasks

KEY = make_key(0)
PATHS = ("latent", "both")


def built(**options: Any) -> Any:
    """Return a small process."""
    return learner(NP, kind="regression", **({"encoder": (8, 8), "decoder": (8,), "latent": 3, "samples": 4} | options))


def wave(seed: int = 0, shots: int = 5) -> Task:
    """Return a toy task."""
    return task(seed, "regression", shots=shots)


@pytest.mark.parametrize("path", PATHS)
def test_finite_differences(path: str) -> None:
    # A seed at which no unit stands at its kink within the difference's width.
    one = built(path=path)
    values, example = fresh(one), wave()
    assert_true_gradient(lambda v: one.loss(v, example, KEY)[0], values)


@pytest.mark.parametrize("path", PATHS)
def test_vectorised_equals_loop(path: str) -> None:
    one = built(path=path)
    values, batch = fresh(one), tasks(4, "regression", shots=5)
    looped = step(one, values, batch)
    for plan in ("vmap", "fold"):
        assert_equal_steps(step(one, values, batch, plan), looped)
        assert_equal_steps(step(one, values, batch, plan, chunk=3), looped)


def test_order_and_duplicates_of_the_context_do_not_matter() -> None:
    one = built()
    values, support = fresh(one), wave().support
    expected = one.adapt(values, support)
    assert set(expected) == {"mean", "deviation", "representation"}
    for chosen in (torch.tensor([3, 1, 0, 4, 2]), torch.arange(5).repeat(3)):
        found = one.adapt(values, Examples(support.x[chosen], support.y[chosen]))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


def test_targets_are_predicted_independently() -> None:
    one = built()
    values, example = fresh(one), wave()
    fast = one.adapt(values, example.support)
    alone, together = (one.predict(values, fast, x) for x in (example.query.x[:1], example.query.x))
    torch.testing.assert_close(alone, together[:1])
    assert not one.transductive


def test_context_that_is_not_seen_has_no_influence() -> None:
    one = built()
    values, support = fresh(one), wave().support
    key = next(key for key in map(make_key, range(100)) if one.context_weights(5, key, support.x).sum() == 2)
    kept = one.context_weights(5, key, support.x).bool()
    found = one.adapt(values, support, key=key)
    alone = one.adapt(values, Examples(support.x[kept], support.y[kept]))
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)


def test_the_decoder_reads_the_latent_alone_or_the_mean_code_too() -> None:
    both, latent = (built(path=path) for path in ("both", "latent"))
    values = fresh(latent)
    assert {name.split(".")[1] for name in values} == {"latent_encoder", "latent", "decoder"}
    assert values["np.decoder.0.weight"].shape == (8, 3 + 3)
    more = fresh(both)
    assert more["np.decoder.0.weight"].shape == (8, 3 + 8 + 3)
    # Without the weights of the mean code the process is that of the latent path.
    first = more["np.decoder.0.weight"]
    reduced = more | {"np.decoder.0.weight": torch.cat([first[:, :3], first[:, 11:]], 1)}
    ignored = more | {"np.decoder.0.weight": torch.cat([first[:, :3], torch.zeros(8, 8), first[:, 11:]], 1)}
    example = wave()
    names = set(values)
    torch.testing.assert_close(
        both.loss(ignored, example, KEY)[0],
        latent.loss({name: value for name, value in reduced.items() if name in names}, example, KEY)[0],
    )
    assert not torch.isclose(both.loss(ignored, example, KEY)[0], both.loss(more, example, KEY)[0])


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_context(path: str) -> None:
    one = built(path=path)
    values, example = fresh(one), wave()
    nothing = Examples(example.support.x[:0], example.support.y[:0])
    fast = one.adapt(values, nothing, key=KEY)
    assert one.predict(values, fast, example.query.x).isfinite().all()
    if path == "both":
        assert torch.equal(fast["representation"], torch.zeros(8, dtype=torch.float64))


def test_it_approaches_the_exact_posterior_from_below() -> None:
    shape, data = TaskShape(1, 8, 8), GaussianProcess(GaussianProcess.Config(length_scale=(0.5, 0.5)), root=Path())
    config = NP.Config(encoder=(32, 32), decoder=(32,), latent=8, vary_context=False, samples=16)
    one = NP(config, Parts(data.spec("train", shape)))
    values = {name: value.requires_grad_() for name, value in one.init(KEY).items()}
    optimiser = torch.optim.Adam(values.values(), lr=5e-3)
    test = data.sample("test", shape, 0, 200, seed=0)

    def measures() -> dict[str, float]:
        scored = score_tasks(one, values, test, keys(200), plan="vmap", measure=True, kind=REGRESSION)
        return {name: value.mean().item() for name, value in scored.measures.items()}

    before = measures()
    for i in range(150):
        batch = data.sample("train", shape, 32 * i, 32, seed=0)
        found = step(one, {name: value.detach() for name, value in values.items()}, batch, "fold")
        for name, value in values.items():
            value.grad = found.grads[name]
        optimiser.step()
    after, exact = measures(), data.log_likelihood("test", shape, 0, 200, seed=0).mean()
    assert before["log_likelihood"] + 0.1 < after["log_likelihood"] < exact
    assert after["joint_log_likelihood"] > before["joint_log_likelihood"]
    assert 0.85 < after["coverage_95"] < 0.99
    # Samples of z are drawn from the key of the task.
    first, second = (vmap(lambda t, k: one.measure(values, t, k))(test, keys(200) + shift) for shift in (0, 1))
    assert not torch.equal(first["log_likelihood"], second["log_likelihood"])
