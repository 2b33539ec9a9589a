"""Keys: counter-based noise, so that a draw depends on its key alone and not on the plan, the chunk or the device.

A key is an int64 scalar tensor that holds two words of 31 bits. All functions are safe under `torch.func` transforms.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from metaforge.authoring.protocols import Key

_WORD = 0xFFFFFFFF
_HALF = 0x7FFFFFFF


def make_key(seed: int, *path: int | str) -> Key:
    """Return the key of a place in a run, e.g. `make_key(seed, "train", step)`; an int64 scalar on the CPU."""
    text = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.tensor(int.from_bytes(digest, "little") & ((1 << 62) - 1), dtype=torch.int64)


def fold_in(key: Key, data: int | str) -> Key:
    """Return a new key for a use of `key`: a layer's name, an inner step."""
    word = zlib.crc32(data.encode()) if isinstance(data, str) else data & _WORD
    low, high = key & _HALF, key >> 31
    first = _mix((_mix(low ^ word) + high) & _WORD)
    second = _mix((_mix(high ^ word ^ 0x5BD1E995) + low) & _WORD)
    return ((first >> 1) << 31) | (second >> 1)


def uniform(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers in [0, 1) of the given shape; each depends on `key` and its position alone."""
    # A type of fewer digits than the draw is what is rounded to at last, and never up to 1.
    wide = torch.promote_types(dtype, torch.float32)
    counter = torch.arange(math.prod(shape), dtype=torch.int64, device=key.device)
    bits = _mix((_mix(counter ^ (key & _HALF)) + (key >> 31)) & _WORD)
    drawn = ((bits >> 8).to(wide) * 2.0**-24).reshape(tuple(shape))
    return drawn if dtype == wide else drawn.to(dtype).clamp_max(1.0 - torch.finfo(dtype).eps / 2)


def normal(key: Key, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers of the given shape (Box-Muller)."""
    wide = torch.promote_types(dtype, torch.float32)
    radius = (-2.0 * torch.log1p(-uniform(fold_in(key, 1), shape, wide))).sqrt()
    return (radius * torch.cos(2.0 * math.pi * uniform(fold_in(key, 2), shape, wide))).to(dtype)


def permutation(key: Key, n: int) -> Tensor:
    """Return a random order `[n]` of 0 … n-1."""
    return uniform(key, (n,), torch.float64).argsort()


def _mix(x: Tensor) -> Tensor:
    # A 32-bit finaliser held in int64; the second multiplier is written as its negative residue so that no product
    # leaves the range of int64.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * (0x846CA68B - (1 << 32))) & _WORD
    return x ^ (x >> 16)
