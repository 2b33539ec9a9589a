"""An `nn.Module` as a pure function of its tensors and a key: each call replaces the tensors and restores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.layers.images import MaxPool2d, pooled_network
from metaforge.authoring.layers.noise import KeyedNoise
from metaforge.authoring.network import seeded
from metaforge.authoring.protocols import Pass
from metaforge.errors import ConfigError


class PureModule:
    """A module as a pure function of its parameters, its inputs and the key of the pass.

    `torch.func.functional_call` breaks the tie of a parameter that is shared with a module that has two names. Here,
    every place that holds a tensor is found once and gets the tensor of the parameter's first name.

    Args:
        module: The module. Its submodules whose flag `training` is set are in training mode in passes with a key, and
            in evaluation mode in others; the rest is always in evaluation mode.

    Attributes:
        module: The module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Pass
        >>> from metaforge.authoring.pure_module import PureModule
        >>> pure = PureModule(nn.Linear(2, 1))
        >>> pure({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, torch.ones(3, 2), at=Pass())
        tensor([[2.],
                [2.],
                [2.]])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        self._trains = [part for part in module.modules() if part.training]
        self._training: bool | None = None
        self._pooled = any(isinstance(part, MaxPool2d) for part in module.modules())
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
        # By torch's functions, not by layers; whether there is any is known after the first training pass.
        self._draws_noise: bool | None = None
        self._places = _places(module)

    def __call__(self, parameters: Mapping[str, Tensor], *inputs: Tensor, at: Pass) -> Tensor:
        """Return the module's output; images in it are in the contiguous format, as torch's layers would return them.

        Args:
            parameters: The parameters by their first names.
            *inputs: The inputs. Buffers get the device of the first one, and its dtype if both are floats.
            at: The pass; its key governs the noise.

        Raises:
            ConfigError: The module draws noise that no key governs, or changes a buffer.
        """
        buffers = self._buffers_for(inputs[0])
        versions = [buffer._version for buffer in buffers.values()]
        tensors = {**parameters, **buffers}
        with ExitStack() as contexts:
            if self._pooled:
                contexts.enter_context(pooled_network())
            if self._recurrent:
                contexts.enter_context(_native_recurrence())
            if at.key is None or self._draws_noise is False:
                output = self._run(tensors, inputs, training=at.key is not None)
            else:
                output = self._run_with_noise(tensors, inputs, at)
        for (name, buffer), version in zip(buffers.items(), versions, strict=True):
            if buffer._version != version:
                raise ConfigError(
                    f"The network changes its buffer {name!r} in a forward pass, so equal calls would give unequal"
                    " results.",
                    where=f"backbone, layer {name.rpartition('.')[0]!r}",
                    remedy="compute the value from the inputs, or put that layer into evaluation mode (`.eval()`) if it"
                    " then leaves the buffer as it is",
                )
        return output.contiguous() if self._pooled else output

    def _buffers_for(self, x: Tensor) -> dict[str, Tensor]:
        floats = x.is_floating_point()
        return {
            name: value.to(x) if floats and value.is_floating_point() else value.to(x.device)
            for name, value in self._buffers.items()
        }

    def _run_with_noise(self, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...], at: Pass) -> Tensor:
        """Run the module in training mode, with the noise of torch's functions drawn from the key of the pass.

        Raises:
            ConfigError: In its first training pass, the module draws from torch's default generator all the same.
        """
        first, before = self._draws_noise is None, _generator_state()
        with KeyedNoise(at) as noise:
            output = self._run(tensors, inputs, training=True)
        self._draws_noise = noise.draws > 0
        if first and _generator_state() != before:
            with KeyedNoise(at):
                layer = self._random_layer(tensors, inputs)
            raise ConfigError(
                f"The network draws noise that no key governs, in {layer or 'its forward pass'}.",
                where="backbone",
                remedy="draw it with torch.nn.functional.dropout, torch.bernoulli, torch.rand_like or torch.randn_like,"
                " or put the layer into evaluation mode (`.eval()`)",
            )
        return output

    def _run(self, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...], *, training: bool) -> Tensor:
        """Run the module with these tensors; a note of an error in it names the layer."""
        if training is not self._training:
            for part in self._trains:
                part.training = training
            self._training = training
        with self._holding(tensors):
            try:
                output: Tensor = self.module(*inputs)
            except Exception as error:
                if layer := self._layer_in(error.__traceback__):
                    error.add_note(f"in {layer} of the network")
                raise
        return output

    @contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        before = [owner[leaf] for owner, leaf, _ in self._places]
        try:
            for owner, leaf, name in self._places:
                owner[leaf] = tensors[name]
            yield
        finally:
            for (owner, leaf, _), tensor in zip(self._places, before, strict=True):
                owner[leaf] = tensor

    def _random_layer(self, tensors: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> str:
        """Return the description of the innermost layer that draws from the default generator; empty if none does."""
        found: list[str] = []
        before: list[list[int]] = []

        def enter(part: nn.Module, inputs: object) -> None:
            before.append(_generator_state())

        def leave(part: nn.Module, inputs: object, output: object) -> None:
            if before.pop() != _generator_state():
                found.append(self._described(part))

        handles = [part.register_forward_pre_hook(enter) for part in self.module.modules()]
        handles += [part.register_forward_hook(leave) for part in self.module.modules()]
        try:
            with seeded(make_key(0)):
                self._run(tensors, inputs, training=True)
        finally:
            for handle in handles:
                handle.remove()
        return found[0] if found else ""

    def _layer_in(self, trace: TracebackType | None) -> str:
        """Return the description of the innermost layer in a traceback; empty if there is none."""
        parts, found = set(self.module.modules()), ""
        while trace is not None:
            owner = trace.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and owner in parts:
                found = self._described(owner)
            trace = trace.tb_next
        return found

    def _described(self, part: nn.Module) -> str:
        name = next(name for name, other in self.module.named_modules() if other is part)
        return f"the layer {name!r} ({type(part).__name__})" if name else f"the module {type(part).__name__}"


# A dictionary of a submodule that holds a tensor, the key in it, and the tensor's first name in the module.
_Place = tuple[dict[str, Tensor | None], str, str]


def _places(module: nn.Module) -> list[_Place]:
    """Return every place in a module that holds a parameter or buffer."""
    places: list[_Place] = []
    names: dict[int, str] = {}
    for path, part in module.named_modules():
        for owner in (part._parameters, part._buffers):
            for leaf, tensor in owner.items():
                if tensor is not None:
                    places.append((owner, leaf, names.setdefault(id(tensor), f"{path}.{leaf}" if path else leaf)))
    return places


@contextmanager
def _native_recurrence() -> Iterator[None]:
    """Compute recurrent layers without oneDNN, whose kernels have no derivative under `torch.func`."""
    # Not by `torch.backends.mkldnn.flags`, which also sets options that warn on most machines.
    backend: Any = torch.backends.mkldnn
    before = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = before


def _generator_state() -> list[int]:
    """Return the state of torch's default CPU generator as numbers, which can be compared within any transform."""
    state: list[int] = torch.default_generator.get_state().tolist()
    return state
