"""Random numbers for data sets from a counter-based generator, vectorised with NumPy.

Each number is a hash of seed, purpose and counter. It does not depend on numbers that were drawn before, nor on the
state of any random generator.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from metaforge.errors import ConfigError

Bits = NDArray[np.uint64]
"""Random 64-bit numbers, or keys from which such numbers are derived."""
Indices = NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def _mix(values: Bits) -> Bits:
    """Return a bijective hash of 64-bit values: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST_FACTOR
    values = (values ^ (values >> np.uint64(27))) * _SECOND_FACTOR
    return values ^ (values >> np.uint64(31))


def episode_keys(seed: int, split: str, first: int, count: int) -> Bits:
    """Return one key per episode, from which all random numbers of the episode are derived.

    Args:
        seed: Any integer.
        split: Name of the split, or any other text that separates one use of the seed from another.
        first: Number of the first episode.
        count: Number of episodes.

    Returns:
        Keys `[count]` of episodes `first` to `first + count - 1`.

    Raises:
        ConfigError: `first` or `count` is negative.

    Example:
        >>> from metaforge.data import episode_keys
        >>> keys = episode_keys(0, "train", 0, 4)
        >>> bool((keys[2:] == episode_keys(0, "train", 2, 2)).all())
        True
    """
    if first < 0 or count < 0:
        raise ConfigError(
            f"episodes {first} to {first + count - 1} do not exist",
            where="sampling of episodes",
            remedy="use a first episode and a count of 0 or more",
        )
    digest = hashlib.blake2b(f"{seed}/{split}".encode(), digest_size=16).digest()
    inner, outer = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    index = np.arange(first, first + count, dtype=np.uint64)
    return _mix(_mix(index + inner) ^ outer)


def bits(keys: Bits, count: int) -> Bits:
    """Return random 64-bit numbers for each key.

    The numbers of a key are also good keys: `bits(keys, 2)[:, 0]` and `bits(keys, 2)[:, 1]` serve two purposes
    independently.

    Args:
        keys: Keys `[...]`.
        count: How many numbers to draw for each key.

    Returns:
        Numbers `[..., count]`.

    Example:
        >>> from metaforge.data import bits, episode_keys
        >>> bits(episode_keys(0, "train", 0, 5), 3).shape
        (5, 3)
    """
    return _mix(keys[..., None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(keys: Bits, count: int) -> NDArray[np.float64]:
    """Return uniform random numbers in [0, 1) for each key, with the full 53-bit precision of a float64.

    Args:
        keys: Keys `[...]`.
        count: How many numbers to draw for each key.

    Returns:
        Numbers `[..., count]`.

    Example:
        >>> from metaforge.data import episode_keys, uniforms
        >>> numbers = uniforms(episode_keys(0, "train", 0, 1000), 2)
        >>> numbers.shape, bool((0 <= numbers).all() and (numbers < 1).all())
        ((1000, 2), True)
    """
    return (bits(keys, count) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def normals(keys: Bits, count: int) -> NDArray[np.float64]:
    """Return random numbers with the standard normal distribution for each key, by the method of Box and Muller (1958).

    The first numbers of a key do not depend on how many are drawn.

    Args:
        keys: Keys `[...]`.
        count: How many numbers to draw for each key.

    Returns:
        Numbers `[..., count]`.

    Example:
        >>> from metaforge.data import episode_keys, normals
        >>> numbers = normals(episode_keys(0, "train", 0, 1000), 2)
        >>> numbers.shape, bool(abs(numbers.mean()) < 0.1), bool(abs(numbers.std() - 1) < 0.1)
        ((1000, 2), True, True)
    """
    first, second = np.moveaxis(uniforms(keys, 2 * count).reshape(*keys.shape, count, 2), -1, 0)
    numbers: NDArray[np.float64] = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    return numbers


def random_order(random: Bits) -> Indices:
    """Return random permutations of 0 to n - 1, `[..., n]`, from random numbers `[..., n]`."""
    # The index replaces the low bits of each random number: a sort of words is several times faster than an argsort.
    width = np.uint64(max(random.shape[-1] - 1, 1).bit_length())
    words = (random >> width << width) | np.arange(random.shape[-1], dtype=np.uint64)
    words.sort(axis=-1)
    return (words & ((np.uint64(1) << width) - np.uint64(1))).astype(np.int64)


def sample_without_replacement(keys: Bits, population: int | Indices, count: int) -> Indices:
    """Return distinct random numbers in random order for each key.

    Args:
        keys: Keys `[...]`.
        population: The numbers are drawn from 0 to `population - 1`; one population for all keys or one for each.
        count: How many numbers to draw for each key, at most the smallest population.

    Returns:
        Numbers `[..., count]`.

    Example:
        >>> from metaforge.data import episode_keys, sample_without_replacement
        >>> chosen = sample_without_replacement(episode_keys(0, "train", 0, 2), 5, 5)
        >>> sorted(chosen[0].tolist()), sorted(chosen[1].tolist())
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    if isinstance(population, int) and population <= 4 * count:
        return random_order(bits(keys, population))[..., :count]
    # Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", 1987): its cost does not grow with the population,
    # which may be thousands of classes.
    random = bits(keys, 2 * count)
    chosen = np.empty((*keys.shape, count), dtype=np.int64)
    for position in range(count):
        last = population - count + position
        width = np.asarray(last + 1, dtype=np.uint64)
        drawn = ((random[..., position] >> np.uint64(32)) * width >> np.uint64(32)).astype(np.int64)
        taken = (chosen[..., :position] == drawn[..., None]).any(axis=-1)
        chosen[..., position] = np.where(taken, last, drawn)
    return np.take_along_axis(chosen, random_order(random[..., count:]), axis=-1)
