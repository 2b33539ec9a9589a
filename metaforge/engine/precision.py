"""Context managers for the precision of matrix products, and for attention that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def rounding(device: torch.device, dtype: str, *, tf32: bool) -> Iterator[None]:
    """Let matrix products and convolutions round their operands to bfloat16 or TF32 within the context.

    Args:
        device: The device of the computation.
        dtype: `bfloat16` turns on autocast to bfloat16; any other value turns it off.
        tf32: Whether a GPU may round the operands of float32 matrix products to TF32. False leaves PyTorch's setting
            as it is; the setting for convolutions (`torch.backends.cudnn`) is never changed.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else before)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def primitive_attention() -> Iterator[None]:
    """Compute attention from primitive operations within the context.

    PyTorch's fused attention kernels have neither second derivatives nor batching rules for `vmap`.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
