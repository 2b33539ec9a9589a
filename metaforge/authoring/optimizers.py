"""What optimiser plugins share: the options of moments, and when torch's fused implementations are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field

from metaforge.authoring.protocols import Options

Decay = Annotated[float, Field(ge=0, lt=1)]


class MomentOptions(Options):
    """Options of an optimiser with running means of the gradients and of their squares.

    Example:
        >>> from metaforge.authoring import MomentOptions
        >>> MomentOptions(betas=(0.0, 0.99)).betas
        (0.0, 0.99)
    """

    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="decay of the running mean of the gradients, and of that of their squares"
    )
    eps: float = Field(1e-8, ge=0, description="added to the square root of the mean of the squares")


def fused(groups: Iterable[Mapping[str, Any]]) -> bool | None:
    """Return the argument `fused` of a torch optimiser: True for floating-point parameters on the CPU, else None.

    On the CPU a fused optimiser updates all parameters in one call and takes a quarter of the time. On other devices
    torch chooses. A fused optimiser reads memory contiguously, which holds for the parameters that MetaForge passes.

    Args:
        groups: The groups that `Optimizer.build` got.

    Example:
        >>> import torch
        >>> from metaforge.authoring import fused
        >>> fused([{"params": [torch.ones(2)], "lr": 0.1, "weight_decay": 0.0}])
        True
    """
    params = [param for group in groups for param in group["params"]]
    return True if all(param.device.type == "cpu" and param.is_floating_point() for param in params) else None
