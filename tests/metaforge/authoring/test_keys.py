"""Random numbers from keys: they depend on the key alone, and pass statistical tests."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.func import vmap

from metaforge.authoring.keys import _mix, fold_in, make_key, normal, permutation, uniform

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


def test_keys_and_numbers_are_the_same_in_every_version() -> None:
    key = make_key(0, "pinned")
    assert int(key) == PINNED_KEY
    assert int(fold_in(key, "layer")) == PINNED_FOLD
    assert [round(x, 6) for x in uniform(key, (3,), torch.float64).tolist()] == PINNED_UNIFORM


def lowbias32(x: int) -> int:
    """Return the hash of Chris Wellons' hash-prospector, in Python integers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


def test_the_mixing_function_is_lowbias32() -> None:
    words = [
        0,
        1,
        2**31 - 1,
        2**31,
        2**32 - 1,
        *((2**32 * uniform(make_key(5), (1000,), torch.float64)).long().tolist()),
    ]
    assert _mix(torch.tensor(words)).tolist() == [lowbias32(word) for word in words]


def test_fold_in_gives_a_key_per_use_and_depends_on_the_order() -> None:
    key = make_key(0)
    children = [fold_in(key, n) for n in range(1000)] + [fold_in(key, f"layer.{n}") for n in range(1000)]
    assert len({int(k) for k in children}) == 2000
    assert all(0 <= int(k) < 1 << 62 for k in children)
    assert fold_in(fold_in(key, 1), 2) != fold_in(fold_in(key, 2), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_shapes_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for function in (uniform, normal):
        numbers = function(make_key(1), shape, dtype)
        assert numbers.shape == shape
        assert numbers.dtype == dtype
        assert numbers.isfinite().all()


def test_uniform_moments_and_range() -> None:
    numbers = uniform(make_key(1), (200_000,), torch.float64)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * math.sqrt(1 / 12 / len(numbers))
    assert abs(numbers.var() - 1 / 12) < 1e-3
    counts = torch.histc(numbers, 100, 0, 1)
    assert ((counts - 2000).square() / 2000).sum() < 160  # χ² with 99 degrees of freedom


def test_uniform_numbers_are_equal_in_float32_and_float64() -> None:
    narrow, wide = uniform(make_key(1), (1000,)), uniform(make_key(1), (1000,), torch.float64)
    assert torch.equal(narrow.double(), wide)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_a_narrow_type_are_the_float32_numbers_rounded_and_less_than_one(dtype: torch.dtype) -> None:
    numbers, exact = (uniform(make_key(1), (200_000,), kind) for kind in (dtype, torch.float32))
    assert numbers.dtype == dtype
    assert numbers.max() < 1
    torch.testing.assert_close(numbers.float(), exact, rtol=torch.finfo(dtype).eps, atol=0)
    numbers, exact = (normal(make_key(1), (200_000,), kind) for kind in (dtype, torch.float32))
    assert numbers.dtype == dtype
    assert torch.equal(numbers, exact.to(dtype))


def test_normal_moments() -> None:
    numbers = normal(make_key(2), (200_000,), torch.float64)
    assert abs(numbers.mean()) < 4 / math.sqrt(len(numbers))
    assert abs(numbers.var() - 1) < 0.02
    assert abs(numbers.pow(3).mean()) < 0.05
    assert abs(numbers.pow(4).mean() - 3) < 0.1


def test_neighbouring_keys_and_positions_are_uncorrelated() -> None:
    rows = torch.stack([uniform(make_key(0, i), (400,), torch.float64) for i in range(50)])
    rows = torch.cat([rows, torch.stack([uniform(fold_in(make_key(0), i), (400,), torch.float64) for i in range(50)])])
    correlation = torch.corrcoef(rows) - torch.eye(100, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(400)
    shifted = torch.corrcoef(torch.stack([rows[:, 1:].flatten(), rows[:, :-1].flatten()]))[0, 1]
    assert abs(shifted) < 4 / math.sqrt(rows[:, 1:].numel())


def test_flipping_one_bit_of_the_key_flips_half_of_the_bits_of_the_numbers() -> None:
    key = make_key(9)
    base = (uniform(key, (64,), torch.float64) * 2**24).long()
    for bit in range(62):
        other = (uniform(key ^ (1 << bit), (64,), torch.float64) * 2**24).long()
        flipped = sum(int(x).bit_count() for x in (base ^ other).tolist()) / (64 * 24)
        assert 0.4 < flipped < 0.6, bit


def test_every_permutation_is_equally_frequent() -> None:
    orders = [tuple(permutation(make_key(i), 3).tolist()) for i in range(1200)]
    assert set(orders) == set(itertools.permutations(range(3)))
    assert all(abs(orders.count(order) - 200) < 60 for order in set(orders))


def test_vmap_equals_a_loop_and_torch_s_generator_is_not_used() -> None:
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
