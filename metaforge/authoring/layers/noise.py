"""Noise of PyTorch's functions, drawn from the key of a forward pass instead of the global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from metaforge.authoring.keys import fold_in, normal, uniform
from metaforge.authoring.protocols import Key, Pass
from metaforge.errors import ConfigError

NextKey = Callable[[], Key]


class KeyedNoise(TorchFunctionMode):
    """Lets functions of torch draw their noise from the key of a pass within the context.

    These are dropout in all its functional forms, also inside attention, and `bernoulli`, `rand_like` and `randn_like`.
    Other random functions are called unchanged; the model refuses a network that calls one.

    Args:
        at: The pass; its key, role and inner step determine the noise.

    Attributes:
        draws: The number of draws so far. Each has a key of its own.
    """

    def __init__(self, at: Pass) -> None:
        super().__init__()
        assert at.key is not None
        self._key, self.draws = fold_in(fold_in(fold_in(at.key, "noise"), at.role), at.step), 0

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or its keyed equivalent."""
        if function is functional.multi_head_attention_forward:
            with self:
                return _attention_forward(*args, **(kwargs or {}))
        keyed = _KEYED.get(function)
        if keyed is None:
            return function(*args, **(kwargs or {}))
        return keyed(self._next, *args, **(kwargs or {}))

    def _next(self) -> Key:
        self.draws += 1
        return fold_in(self._key, self.draws)


def dropout_factor(key: Key, shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """Return what dropout multiplies a tensor of a shape by: 0 with probability `rate`, else `1 / (1 - rate)`."""
    kept = (uniform(key, shape, dtype) >= rate).to(dtype)
    return kept / (1.0 - rate) if rate < 1.0 else kept


def _dropout(key: NextKey, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _dropped(key, input, input.shape, p, training, inplace)


def _torch_dropout(key: NextKey, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropped(key, input, input.shape, p, train)


def _channel_dropout(dims: int) -> Callable[..., Tensor]:
    """Return the keyed `dropout1d`, `dropout2d` or `dropout3d`, whose channels have `dims` dimensions."""

    def keyed(key: NextKey, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        # As torch's: without a batch dimension for 1 and 3 dimensions; 2 dimensions always have one.
        lead = 1 if dims != 2 and input.dim() == dims + 1 else 2
        shape = (*input.shape[:lead], *(1,) * (input.dim() - lead))
        return _dropped(key, input, shape, p, training, inplace)

    return keyed


def _dropped(
    key: NextKey, x: Tensor, shape: Sequence[int], rate: float, training: bool, inplace: bool = False
) -> Tensor:
    if not training or rate == 0.0:
        return x
    dropped = x * dropout_factor(key(), shape, rate, x.dtype)
    return _poisoned(x, dropped) if inplace else dropped


def _attention(
    key: NextKey,
    query: Tensor,
    keys: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return scaled dot-product attention as torch's documentation defines it; without dropout torch computes it."""
    if dropout_p == 0.0:
        return functional.scaled_dot_product_attention(
            query, keys, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        keys, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (keys, value))
    scores = query @ keys.transpose(-2, -1) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        size = query.shape[-2], keys.shape[-2]
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return weights * dropout_factor(key(), weights.shape, dropout_p, weights.dtype) @ value


def _attention_keywords(key: NextKey, *args: Any, **kwargs: Any) -> Tensor:
    if "key" in kwargs:
        kwargs["keys"] = kwargs.pop("key")
    return _attention(key, *args, **kwargs)


def _bernoulli(key: NextKey, input: Tensor, p: float | None = None) -> Tensor:
    rate: Tensor | float = input if p is None else p
    return (uniform(key(), input.shape, torch.float64) < rate).to(input.dtype)


def _bernoulli_in_place(key: NextKey, input: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return _poisoned(input, (uniform(key(), input.shape, torch.float64) < p).to(input.dtype))


def _poisoned(old: Tensor, new: Tensor) -> Tensor:
    """Return what an operation in place would have written, as a new tensor: one tensor cannot hold it for all tasks.

    A caller that reads the old tensor all the same gets NaN there, not a wrong number.
    """
    if not old.is_floating_point():
        raise ConfigError(
            f"A random operation in place on a tensor of {old.dtype} has no keyed equivalent.",
            where="backbone",
            remedy="draw the noise in a floating-point type",
        )
    old.fill_(math.nan)
    return new


def _rand_like(key: NextKey, input: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return uniform(key(), input.shape, dtype or input.dtype)


def _randn_like(key: NextKey, input: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return normal(key(), input.shape, dtype or input.dtype)


def _keyed_functions() -> dict[Any, Callable[..., Tensor]]:
    """Return the keyed equivalents of random functions, which get a function that returns a new key first."""
    return {
        functional.dropout: _dropout,
        functional.dropout1d: _channel_dropout(1),
        functional.dropout2d: _channel_dropout(2),
        functional.dropout3d: _channel_dropout(3),
        torch.dropout: _torch_dropout,
        functional.scaled_dot_product_attention: _attention_keywords,
        torch.bernoulli: _bernoulli,
        Tensor.bernoulli: _bernoulli,
        Tensor.bernoulli_: _bernoulli_in_place,
        torch.rand_like: _rand_like,
        torch.randn_like: _randn_like,
    }


_KEYED: Mapping[Any, Callable[..., Tensor]] = _keyed_functions()

# A function mode sees a call of `multi_head_attention_forward`, but not the dropout inside of it: torch hands the whole
# call to the mode. This is its body without the check that does so.
_attention_forward = FunctionType(
    functional.multi_head_attention_forward.__code__,
    {**vars(functional), "has_torch_function": lambda arguments: False},
    argdefs=functional.multi_head_attention_forward.__defaults__,
)
_attention_forward.__kwdefaults__ = functional.multi_head_attention_forward.__kwdefaults__
