"""Context managers for the precision of matrix products, and for attention that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def rounding(device: torch.device, dtype: str, *, tf32: bool) -> Iterator[None]:
    """Let matrix products and convolutions round their operands to bfloat16 or TF32 within the context, or not.

    Args:
        device: The device of the computation.
        dtype: `bfloat16` turns on autocast to bfloat16; any other value turns it off.
        tf32: Whether a GPU may round the operands of float32 matrix products and convolutions to TF32. By PyTorch's own
            defaults it may for convolutions only.
    """
    with _tf32(allowed=tf32), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 within the context, and restore PyTorch's settings after it.

    PyTorch has two interfaces for them. Its kernels obey the newer one (`fp32_precision`), Inductor reads the older
    one, and reading the older one raises an error where the two disagree. So both are set, first the older one.
    """
    backends: Any = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn)
    operators = (backends.cuda.matmul, backends.mkldnn.matmul, *convolutions)
    before = [operator.fp32_precision for operator in operators]
    try:
        legacy = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        legacy = None  # The caller has used the newer interface alone.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    backends.cudnn.allow_tf32 = allowed
    for operator in convolutions:
        operator.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy[0])
            backends.cudnn.allow_tf32 = legacy[1]
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


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
