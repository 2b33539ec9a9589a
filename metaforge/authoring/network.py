"""Build networks: from a key, with a linear head, and knowing how many features they compute."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from metaforge.authoring.keys import make_key
from metaforge.authoring.layers.noise import KeyedNoise
from metaforge.authoring.protocols import Backbone, ContextBackbone, Examples, Key, Pass, TaskSpec
from metaforge.errors import ConfigError


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Seed torch's default CPU generator with `key` inside the context, and restore its state afterwards.

    Modules draw their initial weights from this generator, so inside they depend on the key alone.

    Args:
        key: An int64 scalar tensor.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import make_key, seeded
        >>> with seeded(make_key(0)):
        ...     first = nn.Linear(2, 1)
        >>> with seeded(make_key(0)):
        ...     second = nn.Linear(2, 1)
        >>> bool((first.weight == second.weight).all())
        True
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(key))
    try:
        yield
    finally:
        generator.set_state(before)


class Headed(nn.Sequential):
    """A body, `nn.Flatten` and a linear head, in this order.

    Args:
        body: Maps `[n, *x_shape]`, and a context if it takes one, to `[n, ...]`.
        head: Maps the flattened features to outputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import Headed
        >>> Headed(nn.Conv2d(1, 4, 3), nn.Linear(144, 5))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 5])
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__(body, nn.Flatten(), head)

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        """Return the output `[n, outputs]` for `x` `[n, *x_shape]`; the body gets the context, if there is one."""
        body, flatten, head = self
        out: Tensor = head(flatten(body(x, *context)))
        return out


def build_backbone(backbone: Backbone, spec: TaskSpec, context: int = 0) -> nn.Module:
    """Return a new module of a backbone, for inputs and, if `context` is not 0, a context vector of that size.

    Args:
        backbone: The backbone.
        spec: Specification of the tasks.
        context: Size of the context vector that the module takes beside the inputs.

    Raises:
        ConfigError: A context is wanted, but the backbone's `build` has no parameter `context`.
    """
    if not context:
        return backbone.build(spec)
    if "context" not in inspect.signature(backbone.build).parameters:
        raise ConfigError(
            f"The backbone {type(backbone).__name__} takes no context, which the learner adapts.",
            where="backbone",
            remedy="choose another backbone, or give its `build` a parameter `context`",
        )
    return cast(ContextBackbone, backbone).build(spec, context=context)


def with_head(backbone: Callable[..., nn.Module], outputs: int, x_shape: Sequence[int]) -> Callable[..., nn.Module]:
    """Return a function that builds a backbone followed by `nn.Flatten` and a linear head.

    Args:
        backbone: Builds a new backbone at each call. If the returned function is called with `context=n`, the backbone
            is called with it too.
        outputs: Number of outputs of the head.
        x_shape: Shape of one input, without the batch dimension.

    Returns:
        A function that builds a module from `[n, *x_shape]` to `[n, outputs]`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from metaforge.authoring import with_head
        >>> build = with_head(lambda: nn.Conv2d(1, 4, 3), outputs=5, x_shape=(1, 8, 8))
        >>> build()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 5])
    """

    def build(**context: int) -> nn.Module:
        body = backbone(**context)
        return Headed(body, nn.Linear(feature_size(body, x_shape, **context), outputs))

    return build


def feature_size(module: nn.Module, x_shape: Sequence[int], context: int = 0) -> int:
    """Return the number of features that a module computes for one input, flattened.

    It runs a copy of the module in evaluation mode on two inputs of zeros, so the module itself does not change.

    Args:
        module: A module from `[n, *x_shape]` to `[n, ...]`.
        x_shape: Shape of one input, without the batch dimension.
        context: Size of the context vector that the module takes beside the inputs; 0 if it takes none.

    Returns:
        The number of features of one input.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import feature_size
        >>> feature_size(nn.Conv2d(1, 4, 3), (1, 8, 8))
        144
    """
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        size: int = module(*zero_inputs(module, x_shape, context)).flatten(1).shape[1]
    return size


def draws_noise(backbone: Callable[[], nn.Module], x_shape: Sequence[int]) -> bool:
    """Return whether a network draws noise in a training pass, such as that of dropout.

    Args:
        backbone: Builds a new network, which is in the mode that its owner wants in training.
        x_shape: Shape of one input, without the batch dimension.

    Returns:
        Whether it does. If not, equal inputs have equal features in every inner step of a task.

    Example:
        >>> from torch import nn
        >>> from metaforge.authoring import draws_noise
        >>> draws_noise(lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1)), (3,))
        True
    """
    key = make_key(0, "noise")
    with seeded(key), torch.no_grad(), KeyedNoise(Pass(key)) as noise:
        module = copy.deepcopy(backbone())  # The pass moves the running statistics of native batch norm.
        module(*zero_inputs(module, x_shape))
    drawn: int = noise.draws
    return drawn > 0


def zero_inputs(module: nn.Module, x_shape: Sequence[int], context: int = 0) -> tuple[Tensor, ...]:
    """Return two inputs of zeros, and a context of zeros if there is one, with the type of the module's parameters."""
    like = next(module.parameters(), torch.empty(0))
    return (like.new_zeros((2, *x_shape)), *((like.new_zeros(context),) if context else ()))


def input_sizes(spec: TaskSpec, *axes: str) -> tuple[int, ...]:
    """Return the sizes of the axes of an input, which a backbone names because it needs exactly these.

    Args:
        spec: The specification of the tasks.
        axes: Names of the axes, such as `channels`, `height` and `width`.

    Returns:
        The size of each axis.

    Raises:
        ConfigError: An input has another number of axes.

    Example:
        >>> from metaforge.authoring import TaskShape, TaskSpec, input_sizes
        >>> spec = TaskSpec("classification", x_shape=(1, 28, 28), outputs=5, shape=TaskShape(5, 1, 1))
        >>> input_sizes(spec, "channels", "height", "width")
        (1, 28, 28)
    """
    if len(spec.x_shape) != len(axes):
        raise ConfigError(
            f"The backbone takes inputs [{', '.join(axes)}], but an input of the data set has the shape"
            f" {list(spec.x_shape)}.",
            where="backbone",
            remedy="choose a backbone or a data set that fits",
        )
    return tuple(spec.x_shape)


def blank_examples(spec: TaskSpec) -> Examples:
    """Return a support set with the shapes of a task's, for what depends on shapes alone.

    Args:
        spec: The specification of the tasks.

    Returns:
        Inputs of zeros `[ways * shots, *x_shape]` with targets: each class `shots` times, or zeros in regression.

    Example:
        >>> from metaforge.authoring import TaskShape, TaskSpec, blank_examples
        >>> blank_examples(TaskSpec("classification", x_shape=(3,), outputs=2, shape=TaskShape(2, 2, 1))).y
        tensor([0, 0, 1, 1])
    """
    count = spec.shape.ways * spec.shape.shots
    if spec.kind.classes:
        y = torch.arange(spec.shape.ways).repeat_interleave(spec.shape.shots)
    else:
        y = torch.zeros(count, *spec.kind.shape_of_target(spec.outputs))
    return Examples(torch.zeros(count, *spec.x_shape), y)
