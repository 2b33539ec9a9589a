"""torchvision: any classifier of the library torchvision by its name, without its head, as `torchvision:resnet18`."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from metaforge.authoring import Backbone, BackboneOptions, TaskSpec, input_sizes
from metaforge.errors import ConfigError, nearest

# Outputs of the classifiers of torchvision.
CLASSES = 1000
# Networks with further classifiers, which torchvision uses in training only.
AUXILIARY = ("googlenet", "inception_v3")


class TorchVisionOptions(BackboneOptions):
    """Options of networks of torchvision."""

    after_colon: ClassVar[str] = "model"

    model: str = Field(
        "resnet18",
        min_length=1,
        max_length=200,
        description="name of a classifier, as torchvision.models.list_models(torchvision.models) has it",
    )


def library() -> Any:
    """Return the package torchvision.models; raise `ConfigError` if it cannot be imported."""
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:
        # A RuntimeError is that of a torchvision that was built for another version of torch.
        raise ConfigError(
            f"The package torchvision cannot be imported: {error}.",
            where="backbone",
            remedy="pip install 'metaforge[torchvision]', in a version that fits the installed torch",
        ) from error
    return torchvision.models


class TorchVision(Backbone):
    """Any classifier of torchvision: `--backbone torchvision:NAME`. The features are what its last layer takes.

    It requires the package torchvision: `pip install 'metaforge[torchvision]'`. The last linear layer, that of the
    1000 classes, is replaced by `nn.Identity`; a network without one, such as SqueezeNet, is refused. Networks that
    MetaForge cannot compute exactly are refused too; see the page on networks. Vision transformers are built for the
    size of the images, which must be square.

    The networks take three channels. For images of one channel, the weights of the first convolution are summed over
    the three: the result is that of the grey image in each of the three channels. Other numbers are refused.

    Initial weights are torchvision's for a new network, or those of a file (`weights`). torchvision distributes its
    trained weights as pickle files, which MetaForge does not read: save them in the safetensors format first.
    """

    Config = TorchVisionOptions
    reference: ClassVar[str] = "TorchVision maintainers 2016, https://github.com/pytorch/vision"

    def __init__(self, config: TorchVisionOptions) -> None:
        self.config = config

    def build(self, spec: TaskSpec) -> nn.Module:
        """Return a module from `[n, channels, h, w]` to `[n, features]`.

        Raises:
            ConfigError: The inputs are not images of one or three channels, torchvision is not installed or has no
                network of this name, or the network does not end in a linear layer.
        """
        channels, height, _ = input_sizes(spec, "channels", "height", "width")
        models, name = library(), self.config.model
        known = models.list_models(models)
        if name not in known:
            raise ConfigError(
                f"torchvision has no classifier {name!r}.{nearest(name, known)}",
                where="backbone.model",
                remedy="give one of the names in torchvision.models.list_models(torchvision.models)",
            )
        if channels not in (1, 3):
            raise ConfigError(
                f"Networks of torchvision take images of 1 or 3 channels, but those of the data set have {channels}.",
                where="backbone",
                remedy="choose another backbone; timm takes any number",
            )
        options: dict[str, Any] = {"image_size": height} if name.startswith("vit_") else {}
        if name in AUXILIARY:
            options = {"aux_logits": False, "init_weights": True}
        network: nn.Module = models.get_model(name, weights=None, **options)
        _remove_head(network, name)
        if channels == 1:
            _take_grey_images(network)
        return network


def _remove_head(network: nn.Module, name: str) -> None:
    """Replace the last linear layer of a network by the identity; raise `ConfigError` if it is not the classifier."""
    *_, (path, last) = [(path, module) for path, module in network.named_modules() if not [*module.children()]]
    if not isinstance(last, nn.Linear) or last.out_features != CLASSES:
        raise ConfigError(
            f"The network {name!r} does not end in a linear layer, so its features are not defined.",
            where="backbone.model",
            remedy="choose another network",
        )
    network.set_submodule(path, nn.Identity())


def _take_grey_images(network: nn.Module) -> None:
    """Let the first convolution take one channel in place of three equal ones."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    first.in_channels = 1
