"""Counter-based random numbers: a number depends only on a key and on its position in the result.

The numbers of a `torch.Generator` depend on how often it was used before, and so on the order of the tasks and on how
many of them are computed together. Here randomness is an argument instead, as in JAX: a key is an int64 scalar tensor
that holds two words of 31 bits, and `fold_in` derives one key per use from it. All functions work under `torch.func`
transforms.

Sources:

- Counter-based generation: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
- The mixing function is the 32-bit integer hash `lowbias32` (multipliers 0x7FEB352D and 0x846CA68B, shifts 16, 15
  and 16), found by Chris Wellons' program hash-prospector (github.com/skeeto/hash-prospector, public domain).
- The constant 0x5BD1E995 is the multiplier of MurmurHash2 (Austin Appleby, public domain). Here it only makes the two
  words of a new key differ, as an operand of XOR.
- Normal numbers: Box and Muller, "A note on the generation of random normal deviates", Annals of Mathematical
  Statistics 29, 1958.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from metaforge.authoring.protocols import Key

_MASK_32 = 0xFFFFFFFF
_MASK_31 = 0x7FFFFFFF


def make_key(seed: int, *path: int | str) -> Key:
    """Return the key of a seed and a path.

    The seed and the parts of the path are joined with `/` and hashed with BLAKE2b.

    Args:
        seed: Seed of all keys, such as that of the run.
        path: What the key is for, such as `"train"` and the number of an episode.

    Returns:
        An int64 scalar on the CPU, in [0, 2**62).

    Example:
        >>> from metaforge.authoring import make_key
        >>> make_key(0, "train", 5)
        tensor(2049768804648341852)
        >>> bool(make_key(0, "train", 5) == make_key(0, "train", 6))
        False
    """
    text = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(digest, "little") & ((1 << 62) - 1), dtype=torch.int64)


def fold_in(key: Key, data: int | str) -> Key:
    """Return a new key that is derived from a key and an integer or a string, like `jax.random.fold_in`.

    Args:
        key: An int64 scalar.
        data: What the new key is for, such as a layer's name or the number of an inner step. Only the lowest 32 bits
            of an integer are used, and the CRC-32 of a string.

    Returns:
        An int64 scalar on the device of `key`.

    Example:
        >>> from metaforge.authoring import fold_in, make_key
        >>> key = make_key(0)
        >>> fold_in(key, "dropout")
        tensor(2807482847148941752)
        >>> bool(fold_in(key, "dropout") == fold_in(key, "noise"))
        False
    """
    word = zlib.crc32(data.encode()) if isinstance(data, str) else data & _MASK_32
    low, high = key & _MASK_31, key >> 31
    first = _mix((_mix(low ^ word) + high) & _MASK_32)
    second = _mix((_mix(high ^ word ^ 0x5BD1E995) + low) & _MASK_32)
    return ((first >> 1) << 31) | (second >> 1)


def uniform(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers with the uniform distribution on [0, 1).

    Args:
        key: An int64 scalar.
        shape: Shape of the result.
        dtype: Floating-point type of the result. The numbers are multiples of 2**-24 and equal in float32 and float64;
            in a narrower type they are the float32 numbers rounded, and still less than 1.

    Returns:
        A tensor `[*shape]` on the device of `key`.

    Example:
        >>> from metaforge.authoring import make_key, uniform
        >>> uniform(make_key(0), (3,))
        tensor([0.3172, 0.9084, 0.6676])
    """
    wide = torch.promote_types(dtype, torch.float32)
    counter = torch.arange(math.prod(shape), dtype=torch.int64, device=key.device)
    bits = _mix((_mix(counter ^ (key & _MASK_31)) + (key >> 31)) & _MASK_32)
    numbers = ((bits >> 8).to(wide) * 2.0**-24).reshape(tuple(shape))
    # Rounding to a narrower type can give exactly 1, which is outside the range.
    return numbers if dtype == wide else numbers.to(dtype).clamp_max(1.0 - torch.finfo(dtype).eps / 2)


def normal(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random numbers with the standard normal distribution, by the method of Box and Muller (1958).

    Args:
        key: An int64 scalar.
        shape: Shape of the result.
        dtype: Floating-point type of the result. A type narrower than float32 is computed in float32 and rounded.

    Returns:
        A tensor `[*shape]` on the device of `key`.

    Example:
        >>> from metaforge.authoring import make_key, normal
        >>> normal(make_key(0), (3,))
        tensor([ 0.4783,  0.8807, -0.8958])
    """
    wide = torch.promote_types(dtype, torch.float32)
    radius = (-2.0 * torch.log1p(-uniform(fold_in(key, 1), shape, wide))).sqrt()
    return (radius * torch.cos(2.0 * math.pi * uniform(fold_in(key, 2), shape, wide))).to(dtype)


def permutation(key: Key, n: int) -> Tensor:
    """Return a random permutation of 0 … n-1: the order that sorts `n` uniform random numbers.

    Args:
        key: An int64 scalar.
        n: Length of the permutation.

    Returns:
        An int64 tensor `[n]` on the device of `key`.

    Example:
        >>> from metaforge.authoring import make_key, permutation
        >>> permutation(make_key(0), 5)
        tensor([3, 0, 4, 2, 1])
    """
    return uniform(key, (n,), torch.float64).argsort()


def _mix(x: Tensor) -> Tensor:
    """Return the hash `lowbias32` of 32-bit words that are held in int64."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK_32
    # The second multiplier is 0x846CA68B modulo 2**32. As a negative number its product with a word fits into int64.
    x = ((x ^ (x >> 15)) * (0x846CA68B - (1 << 32))) & _MASK_32
    return x ^ (x >> 16)
