"""Keys: noise that depends on its key alone, and looks like noise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.func import vmap

from metaforge.authoring.keys import fold_in, make_key, normal, permutation, uniform

PINNED_KEY = 3592055116793824212
PINNED_FOLD = 987907173619696347
PINNED_UNIFORM = [0.607347, 0.802843, 0.644025]


def test_make_key_is_a_pure_function_of_its_path() -> None:
    key = make_key(3, "train", 5)
    assert key.shape == ()
    assert key.dtype == torch.int64
    assert key == make_key(3, "train", 5)
    others = [make_key(4, "train", 5), make_key(3, "test", 5), make_key(3, "train", 6), make_key(3, "train")]
    assert len({int(k) for k in [key, *others]}) == 5


def test_draws_never_change_between_versions() -> None:
    key = make_key(0, "pinned")
    assert int(key) == PINNED_KEY
    assert int(fold_in(key, "layer")) == PINNED_FOLD
    assert [round(x, 6) for x in uniform(key, (3,), torch.float64).tolist()] == PINNED_UNIFORM


def test_fold_in_separates_uses_and_their_order() -> None:
    key = make_key(0)
    children = [fold_in(key, n) for n in range(1000)] + [fold_in(key, f"layer.{n}") for n in range(1000)]
    assert len({int(k) for k in children}) == 2000
    assert all(0 <= int(k) < 1 << 62 for k in children)
    assert fold_in(fold_in(key, 1), 2) != fold_in(fold_in(key, 2), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_shapes_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for draw in (uniform, normal):
        drawn = draw(make_key(1), shape, dtype)
        assert drawn.shape == shape
        assert drawn.dtype == dtype
        assert drawn.isfinite().all()


def test_uniform_moments_and_range() -> None:
    drawn = uniform(make_key(1), (200_000,), torch.float64)
    assert 0 <= drawn.min() < drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(drawn))
    assert abs(drawn.var() - 1 / 12) < 1e-3
    counts = torch.histc(drawn, 100, 0, 1)
    assert ((counts - 2000).square() / 2000).sum() < 160  # χ² with 99 degrees of freedom


def test_uniform_is_the_same_number_in_every_precision() -> None:
    single, exact = uniform(make_key(1), (1000,)), uniform(make_key(1), (1000,), torch.float64)
    assert torch.equal(single.double(), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_type_of_few_digits_gets_the_same_numbers_rounded_and_never_one(dtype: torch.dtype) -> None:
    drawn, exact = (uniform(make_key(1), (200_000,), kind) for kind in (dtype, torch.float32))
    assert drawn.dtype == dtype
    assert drawn.max() < 1
    torch.testing.assert_close(drawn.float(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    noise, exact = (normal(make_key(1), (200_000,), kind) for kind in (dtype, torch.float32))
    assert noise.dtype == dtype
    assert torch.equal(noise, exact.to(dtype))


def test_normal_moments() -> None:
    drawn = normal(make_key(2), (200_000,), torch.float64)
    assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn))
    assert abs(drawn.var() - 1) < 0.02
    assert abs(drawn.pow(3).mean()) < 0.05
    assert abs(drawn.pow(4).mean() - 3) < 0.1


def test_neighbouring_keys_and_positions_are_uncorrelated() -> None:
    rows = torch.stack([uniform(make_key(0, i), (400,), torch.float64) for i in range(50)])
    rows = torch.cat([rows, torch.stack([uniform(fold_in(make_key(0), i), (400,), torch.float64) for i in range(50)])])
    correlation = torch.corrcoef(rows) - torch.eye(100, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(400)
    shifted = torch.corrcoef(torch.stack([rows[:, 1:].flatten(), rows[:, :-1].flatten()]))[0, 1]
    assert abs(shifted) < 4 / math.sqrt(rows[:, 1:].numel())


def test_one_bit_of_the_key_changes_half_of_the_bits() -> None:
    key = make_key(9)
    base = (uniform(key, (64,), torch.float64) * 2**24).long()
    for bit in range(62):
        other = (uniform(key ^ (1 << bit), (64,), torch.float64) * 2**24).long()
        flipped = sum(int(x).bit_count() for x in (base ^ other).tolist()) / (64 * 24)
        assert 0.4 < flipped < 0.6, bit


def test_permutation_is_fair() -> None:
    orders = [tuple(permutation(make_key(i), 3).tolist()) for i in range(1200)]
    assert set(orders) == set(itertools.permutations(range(3)))
    assert all(abs(orders.count(order) - 200) < 60 for order in set(orders))


def test_vectorised_equals_loop_and_no_global_generator_moves() -> None:
    before = torch.random.get_rng_state()
    batch = torch.stack([make_key(i) for i in range(5)])
    for draw in (
        lambda key: fold_in(key, "x"),
        lambda key: uniform(key, (2, 3)),
        lambda key: normal(fold_in(key, 4), (7,)),
        lambda key: permutation(key, 6),
    ):
        assert torch.equal(vmap(draw)(batch), torch.stack([draw(key) for key in batch]))
    assert torch.equal(before, torch.random.get_rng_state())
