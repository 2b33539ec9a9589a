"""Rounding of products as asked for, and attention that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def rounding(device: torch.device, dtype: str, *, tf32: bool) -> Iterator[None]:
    """Compute inside with products rounded as asked: to bfloat16 anywhere, to TF32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else before)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def primitive_attention() -> Iterator[None]:
    """Compute attention inside of primitives: torch's fused kernels have no second derivative, nor batches of tasks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
